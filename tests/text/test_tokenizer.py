"""The tokenizer gives the ids of transformers' own for the same folder, and of sentencepiece for its models."""

import json
import shutil
import subprocess
import sys

import pytest
import tokenizers as tk
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_jax.errors import CheckpointError, PromptError
from vila_jax.text.tokenizer import Tokenizer

NAMES = ("hired", "llama", "qwen2")
TEXTS = (
    "USER: <image>\nwhat is in this image? ASSISTANT:",
    "<image><image>two <image> in the middle",
    "  two  spaces ",
    "<s>hi</s> there <unk><pad>",
    "é😀 日本語 ½ naïve 12345's",
    "<|im_start|>user\nhi<|im_end|>\n",
    "tab\tnewline\n\nreturn\r\n",
    "",
    " ",
)


@pytest.fixture(scope="module")
def oracles(folders):
    return {name: transformers.AutoTokenizer.from_pretrained(folders / name) for name in NAMES}


def with_image(oracle):
    """The oracle with `<image>` as a special token, as a LLaVA checkpoint's tokenizer has it."""
    oracle.add_special_tokens({"extra_special_tokens": ["<image>"]})
    return oracle


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_are_those_of_transformers(name, text, tokenizers_by_name, oracles):
    ours, oracle = tokenizers_by_name[name], with_image(oracles[name])
    for special in (True, False):
        ids = oracle(text, add_special_tokens=special)["input_ids"]
        assert ours.encode(text, add_special_tokens=special) == ids
        assert ours.decode(ids, skip_special_tokens=special) == oracle.decode(ids, skip_special_tokens=special)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text(name, text, tokenizers_by_name, oracles):
    ids = with_image(oracles[name])(text)["input_ids"]
    assert tokenizers_by_name[name].encode(text) == ids


@pytest.mark.parametrize("name", NAMES)
def test_special_ids_are_those_of_transformers(name, tokenizers_by_name, oracles):
    ours, oracle = tokenizers_by_name[name], with_image(oracles[name])
    assert ours.bos_id == oracle.bos_token_id and ours.bos_token == oracle.bos_token
    assert ours.eos_ids == (oracle.eos_token_id,)
    assert ours.pad_id == oracle.pad_token_id
    assert ours.vocab_size == len(oracle)
    assert ours.image_token_id == oracle.convert_tokens_to_ids("<image>")
    assert ours.special_ids == set(oracle.all_special_ids) | {
        index for index, token in oracle.added_tokens_decoder.items() if token.special
    }


def save(folder, backend, **options):
    """Writes a folder as `save_pretrained` does, and says that it belongs to a LLaVA model."""
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **options).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    return folder


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def small_bpe(**options):
    pieces = ["<unk>", "<s>", "</s>", *"▁abcdefgh", "▁a", "ab", "▁ab", "cd"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b"), ("c", "d")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = tk.Tokenizer(tk.models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    backend.post_processor = tk.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


ODD_TEXTS = (" ab cd<image> ab", "ab<image>cd </s> ab", "abab  cd\n<image>\nab", "<stop>ab <stop> cd", "xyz <image> x")


def check_odd(folder):
    ours, oracle = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ODD_TEXTS:
        ids = oracle(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids, skip_special_tokens=False) == oracle.decode(ids)
    return ours, oracle


def test_legacy_llama_puts_a_space_after_every_special_token(tmp_path):
    backend = small_bpe()
    backend.normalizer = tk.normalizers.Sequence([tk.normalizers.Prepend("▁"), tk.normalizers.Replace(" ", "▁")])
    ours, _ = check_odd(save(tmp_path, backend, bos_token="<s>", extra_special_tokens=["<image>", "<stop>"]))
    assert ours.encode("ab<image>ab").count(ours.encode("ab", add_special_tokens=False)[0]) == 2


def test_flags_of_added_tokens(tmp_path):
    backend = small_bpe()
    backend.pre_tokenizer = tk.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens([tk.AddedToken("<image>", lstrip=True, rstrip=True, special=True)])
    backend.add_tokens([tk.AddedToken("<stop>", single_word=True, normalized=True)])
    check_odd(save(tmp_path, backend, bos_token="<s>", eos_token="</s>"))


def test_truncation_and_padding_inside_the_file_are_ignored(tmp_path):
    backend = small_bpe()
    backend.add_special_tokens(["<image>"])
    folder = save(tmp_path, backend, bos_token="<s>")
    content = tk.Tokenizer.from_file(str(folder / "tokenizer.json"))
    content.enable_truncation(3)
    content.enable_padding(length=30)
    content.save(str(folder / "tokenizer.json"))
    ours = Tokenizer.from_folder(folder)
    assert ours.encode("ab" * 20) == transformers.AutoTokenizer.from_pretrained(folder)("ab" * 20)["input_ids"]
    assert len(ours.encode("ab" * 20)) > 20 and len(ours.encode("a")) == 2


def test_tokens_that_only_the_config_declares(tmp_path):
    folder = save(tmp_path, small_bpe(), bos_token="<s>", eos_token="</s>")
    declared = {
        "20": {"content": "<stop>", "lstrip": True, "normalized": False, "special": False},
        "16": {"content": "<image>", "normalized": False, "special": True},
    }
    edit(folder / "tokenizer_config.json", added_tokens_decoder=declared, pad_token="<pad>")
    ours, oracle = check_odd(folder)
    assert ours.vocab_size == len(oracle) and ours.pad_id == oracle.pad_token_id
    assert ours.image_token_id == 16


def test_the_oldest_layout_spreads_special_tokens_over_files(tmp_path):
    folder = save(tmp_path, small_bpe())
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "additional_special_tokens": ["<image>"]})
    )
    (folder / "added_tokens.json").write_text(json.dumps({"<image>": 16, "<stop>": 17}))
    ours, oracle = check_odd(folder)
    assert (ours.bos_id, *ours.eos_ids) == (oracle.bos_token_id, oracle.eos_token_id)
    assert ours.special_ids >= {ours.image_token_id}
    assert ours.decode(ours.encode("ab<stop>")) == oracle.decode(oracle.encode("ab<stop>"), skip_special_tokens=True)


def test_the_image_token_may_have_another_name(tmp_path):
    folder = save(tmp_path, small_bpe(), extra_special_tokens={"image_token": "<img>"})
    ours = Tokenizer.from_folder(folder)
    assert ours.image_token == "<img>" and ours.encode("<img>", add_special_tokens=False) == [ours.image_token_id]
    assert ours.special_tokens["image_token"] == "<img>"
    (folder / "processor_config.json").write_text('{"image_token": "<pic>"}')
    edit(folder / "tokenizer_config.json", extra_special_tokens=[], image_token=None)
    assert Tokenizer.from_folder(folder).image_token == "<pic>"


def test_a_tokenizer_without_an_image_token_is_given_one(folders):
    ours = Tokenizer.from_folder(folders / "llama", image_token_id=400)
    assert ours.encode("<image>", add_special_tokens=False) == [400] and ours.vocab_size == 401
    ours = Tokenizer.from_folder(folders / "llama", added_tokens=("<vila/sentinel>", "<image>"), image_token_id=401)
    assert ours.encode("<vila/sentinel><image>", add_special_tokens=False) == [400, 401]


def test_an_image_token_with_another_id_than_the_model_expects(folders):
    assert Tokenizer.from_folder(folders / "hired", image_token_id=4).image_token_id == 4
    with pytest.raises(CheckpointError, match=r"expects image token id 7.*'<image>' the id 4"):
        Tokenizer.from_folder(folders / "hired", image_token_id=7)


def test_a_template_that_writes_bos_gets_no_second_one(tokenizers_by_name):
    ours = tokenizers_by_name["hired"]
    assert ours.encode_prompt("<s>hello") == ours.encode_prompt("hello") == [1, *ours.encode("hello")[1:]]
    assert ours.encode("<s>hello")[:2] == [1, 1]


def test_ids_beyond_the_vocabulary_have_no_text(tokenizers_by_name):
    ours = tokenizers_by_name["hired"]
    assert ours.decode([*ours.encode("hi"), 405, 10**6]) == "hi"


def test_a_lone_surrogate_is_the_users_error(tokenizers_by_name):
    with pytest.raises(PromptError, match="surrogate"):
        tokenizers_by_name["hired"].encode("a\ud800")


def without_tokenizer_json(folders, tmp_path, name, *files):
    for file in ("tokenizer_config.json", "special_tokens_map.json", *files):
        shutil.copy(folders / name / file, tmp_path)
    return tmp_path


def test_sentencepiece_model(folders, tmp_path, oracles):
    folder = without_tokenizer_json(folders, tmp_path, "llama", "tokenizer.model")
    ours = Tokenizer.from_folder(folder)
    for case in json.loads((folders / "sentencepiece.json").read_text())["cases"]:
        # Given a text that starts with a space, sentencepiece puts a second one before it, and transformers does not.
        if not case["text"].startswith((" ", "▁")):
            assert ours.encode(case["text"]) == [1, *case["ids"]]
        assert ours.decode(case["ids"]) == case["decoded"]
    for text in TEXTS:
        assert ours.encode(text) == with_image(oracles["llama"])(text)["input_ids"]
    assert (ours.bos_id, ours.eos_ids, ours.pad_id) == (1, (2,), 0)


@pytest.mark.parametrize(
    "options", [{"legacy": True}, {"add_prefix_space": False}, {"add_bos_token": False}, {"add_eos_token": True}]
)
def test_options_of_sentencepiece_tokenizers(options, folders, tmp_path):
    folder = without_tokenizer_json(folders, tmp_path, "llama", "tokenizer.model")
    edit(folder / "tokenizer_config.json", **options)
    ours = Tokenizer.from_folder(folder)
    model = json.loads((folders / "llama" / "tokenizer.json").read_text())["model"]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    keys = ("legacy", "add_prefix_space", "add_bos_token", "add_eos_token")
    oracle = transformers.LlamaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]],
        **{key: config[key] for key in keys},
    )
    for text in TEXTS:
        expected = with_image(oracle)(text)["input_ids"]
        assert ours.encode(text) == expected
        assert ours.decode(expected) == oracle.decode(expected, skip_special_tokens=True)


def test_vocabulary_and_merges(folders, tmp_path):
    folder = without_tokenizer_json(folders, tmp_path, "qwen2")
    model = json.loads((folders / "qwen2" / "tokenizer.json").read_text())["model"]
    vocabulary = {**model["vocab"]}
    vocabulary["##"] = vocabulary.pop("Ġthe")  # a merge whose line looks like a comment
    merges = [pair for pair in model["merges"] if "".join(pair).replace(" ", "") != "Ġthe"] + [["#", "#"]]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    edit(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    ours, oracle = Tokenizer.from_folder(folder), transformers.Qwen2Tokenizer.from_pretrained(folder)
    for text in (*TEXTS, "### e\u0301 12 34", "a's   b"):
        ids = oracle(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids, skip_special_tokens=False) == oracle.decode(ids)
    assert vocabulary["##"] in ours.encode("##") and ours.vocab_size == len(oracle)


def test_an_unknown_class_of_vocabulary_is_refused(folders, tmp_path):
    folder = without_tokenizer_json(folders, tmp_path, "qwen2")
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    edit(folder / "tokenizer_config.json", tokenizer_class="WhisperTokenizer")
    with pytest.raises(CheckpointError, match=r"WhisperTokenizer.*Qwen2Tokenizer.*save_pretrained"):
        Tokenizer.from_folder(folder)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_folder(tmp_path)
    for word in (str(tmp_path), "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("tokenizer.json", lambda data: data[: len(data) // 2]),
        ("tokenizer.json", lambda data: b'{"version": "1.0"}'),
        ("tokenizer.json", lambda data: b"\xff\xfe"),
        ("tokenizer_config.json", lambda data: data[:-20]),
        ("tokenizer_config.json", lambda data: b"[1, 2]"),
        ("special_tokens_map.json", lambda data: b"nonsense"),
        ("processor_config.json", lambda data: b"{"),
        ("chat_template.json", lambda data: b"3"),
        ("chat_template.jinja", lambda data: b"\xff\xfe\xff"),
    ],
)
def test_damaged_files(file, damage, folders, tmp_path):
    folder = without_tokenizer_json(folders, tmp_path, "llama", "tokenizer.json")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]  # so that special_tokens_map.json is read
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    Tokenizer.from_folder(folder)
    path = folder / file
    path.write_bytes(damage(path.read_bytes() if path.exists() else b""))
    with pytest.raises(CheckpointError, match=str(folder)):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("size", [0, 1, 2, 100, 3000, 6100])
def test_truncated_sentencepiece_models(size, folders, tmp_path):
    folder = without_tokenizer_json(folders, tmp_path, "llama")
    data = (folders / "llama" / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(data[:size])
    with pytest.raises(CheckpointError, match=str(folder)):
        Tokenizer.from_folder(folder)


def test_a_unigram_model_is_refused(folders, tmp_path):
    folder = without_tokenizer_json(folders, tmp_path, "llama")
    # one piece "a", and a trainer spec whose model type (field 3) is 1
    (folder / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01a" + b"\x12\x02\x18\x01")
    with pytest.raises(CheckpointError, match="only BPE"):
        Tokenizer.from_folder(folder)


def test_no_torch_is_imported(folders):
    code = (
        "import sys\n"
        "from vila_jax.text.tokenizer import Tokenizer\n"
        f"Tokenizer.from_folder({str(folders / 'llama')!r}).encode('hi')\n"
        "print([name for name in ('torch', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_places_of_the_chat_template_in_the_order_of_the_processors(folders, tmp_path, tokenizers_by_name):
    folder = without_tokenizer_json(folders, tmp_path, "qwen2", "tokenizer.json")
    assert Tokenizer.from_folder(folder).chat_template == tokenizers_by_name["qwen2"].chat_template is not None
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": "a"}, {"name": "b"}])
    assert Tokenizer.from_folder(folder).chat_template == "a"
    steps = {
        "chat_template.jinja": "from jinja",
        "chat_template.json": json.dumps({"chat_template": "from json"}),
        "processor_config.json": json.dumps({"chat_template": "from processor"}),
    }
    (folder / "preprocessor_config.json").write_text("{}")
    for file, content in steps.items():
        (folder / file).write_text(content)
        expected, _ = transformers.LlavaProcessor.get_processor_dict(folder)
        assert Tokenizer.from_folder(folder).chat_template == expected["chat_template"]
    assert tokenizers_by_name["hired"].chat_template is None
