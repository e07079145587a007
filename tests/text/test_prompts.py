"""Prompts are written and tokenised as by the VILA reference, by its main branch and by the older ones.

Golden ids: `e2e/` (whole prompts), `data/label_masking_*.json` (finished conversations), see tests/golden/vila.
"""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import tokenizers

from vila_jax.errors import CheckpointError, PromptError
from vila_jax.text.prompts import prompt_form, vila_tokenizer
from vila_jax.text.styles import STYLES
from vila_jax.text.tokenizer import Tokenizer
from vila_jax.text.vila_styles import VILA_STYLES, get_vila_style, vila_style_for

IMAGE = {"type": "image"}
VIDEO = {"type": "video", "path": "dog.mp4"}
LLAMA_3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def assistant(words):
    return {"role": "assistant", "content": words}


@pytest.fixture(scope="module")
def checkpoints(golden, tmp_path_factory):
    """Folders with the tokenizers of the golden checkpoints by name; those named `…/model` hold a tokenizer.model."""
    folders = {}
    for path in sorted((golden / "vila" / "checkpoints").iterdir()):
        own = path / "llm" if (path / "llm").exists() else path
        folders[path.name] = own
        if (own / "tokenizer_model_bytes.npz").exists():
            copy = folders[f"{path.name}/model"] = tmp_path_factory.mktemp(path.name)
            (copy / "tokenizer.model").write_bytes(
                np.load(own / "tokenizer_model_bytes.npz")["tokenizer_model"].tobytes()
            )
            for file in ("tokenizer_config.json", "special_tokens_map.json"):
                shutil.copy(own / file, copy)
    return folders


@pytest.fixture(scope="module")
def loaded(checkpoints):
    """Their tokenizers; not to be changed."""
    return {name: vila_tokenizer(folder) for name, folder in checkpoints.items()}


@pytest.fixture(scope="module")
def forms(loaded):
    """The forms by name: both eras of the Llama tokenizer; NVILA's with and without tiles, and pooling videos."""
    llama, qwen = loaded["vila15_llama_siglip"], loaded["nvila_qwen2_dynamic_s2"]
    return {
        "vila1.5": prompt_form(llama, "vila1.5"),
        "nvila-llama": prompt_form(llama, "nvila"),
        "nvila": prompt_form(qwen, "nvila"),
        "dynamic": prompt_form(qwen, "nvila", dynamic=True),
        "pooled": prompt_form(qwen, "nvila", dynamic=True, pool_texts=("one", None, "two")),
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """A whole prompt of the reference: its facts, ids, number of pictures and what they became."""

    name: str
    facts: dict
    ids: list[int]
    pictures: int
    positions: int
    visual: int

    @property
    def folder(self):
        return self.name.removesuffix("__vila15branch")[:-2]

    @property
    def segments(self):
        return [4] if self.name == "nvila_lite_qwen2_dynamic_0" else [1] * self.pictures

    @property
    def messages(self):
        return [user(*[IMAGE] * self.pictures, text(self.facts["prompt_text"]))]


@pytest.fixture(scope="module")
def cases(golden):
    found = {}
    for path in sorted((golden / "vila" / "e2e").glob("*_[012]*.npz")):
        with np.load(path) as arrays:
            found[path.stem] = Case(
                path.stem,
                json.loads(path.with_suffix(".json").read_text()),
                arrays["input_ids"][0].tolist(),
                sum(key.startswith("image_") for key in arrays),
                arrays["inputs_embeds"].shape[1],
                math.prod(arrays["projected_features"].shape[:-1]) if "projected_features" in arrays else 0,
            )
    return found


def tokenizers_of(case, loaded):
    return [loaded[key] for key in (case.folder, f"{case.folder}/model") if key in loaded]


def check_ids(form, prompt, case):
    ids = form.encode(prompt, case.segments)
    assert ids == case.ids, case.name
    assert ids.count(form.image_id) == sum(case.segments)
    assert len(ids) + case.visual + sum(case.segments) * (len(form.after_image) - 1) == case.positions


def test_prompts_of_the_older_branches(cases, loaded):
    older = [case for case in cases.values() if "query" in case.facts]
    for case in older:
        for tokenizer in tokenizers_of(case, loaded):
            form = prompt_form(tokenizer, "v1" if case.name.startswith("v1_") else "vila1.5")
            style = vila_style_for("llama", case.folder, era="vila1.5", chosen=case.facts["conv_mode"])
            prompt = form.render([{"role": "user", "content": case.facts["query"]}], style)
            assert prompt == case.facts["prompt"]
            check_ids(form, prompt, case)
    assert len(older) == 5


def test_prompts_of_the_main_branch(cases, loaded):
    newer = [case for case in cases.values() if "prompt_text" in case.facts]
    for case in newer:
        for tokenizer in tokenizers_of(case, loaded):
            form = prompt_form(tokenizer, "nvila", dynamic=case.folder == "nvila_lite_qwen2_dynamic")
            auto = case.facts["conv_mode"] == "auto"
            style = vila_style_for("llama", era="nvila", has_own_template=auto)
            for own in [None, VILA_STYLES["qwen2"]] if auto else [style]:
                check_ids(form, form.render(case.messages, own), case)
            # `templated_text` is decoded from the ids, so that it shows BOS and every tile
            shown = case.facts["templated_text"]
            assert form.encode(shown, [1] * shown.count("<image>")) == case.ids
    assert len(newer) == 9


def test_pictures_and_text_in_turn(cases, loaded):
    form = prompt_form(loaded["v1_single_folder"], "v1")
    words = "What colour is the car?"
    messages = [user(IMAGE, text(f"{words} red.\n"), IMAGE, text(words))]
    prompt = form.render(messages, VILA_STYLES["vicuna_v1"])
    assert prompt == cases["v1_single_folder_1"].facts["prompt"]
    messages = [user(IMAGE, IMAGE, text("How many birds are there?"))]
    prompt = form.render(messages, VILA_STYLES["vicuna_v1"])
    assert prompt == cases["vila15_llama_siglip_1__vila15branch"].facts["prompt"]


def records(golden, era):
    return json.loads((golden / "vila" / "data" / f"label_masking_{era}.json").read_text())


def conversation(record):
    roles = {"human": "user", "gpt": "assistant"}
    turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in record["conversation"]]
    return [{"role": "system", "content": ""}, *turns] if record["no_system_prompt"] else turns


def llama_3_tokenizer(checkpoints, **special):
    """The byte-level vocabulary before the media tokens, with the special tokens of Llama 3."""
    backend = json.loads((checkpoints["nvila_lite_qwen2_dynamic"] / "tokenizer.json").read_text())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] < 403]
    return Tokenizer(
        tokenizers.Tokenizer.from_str(json.dumps(backend)),
        special_tokens={"eos_token": "<|im_end|>", **special},
        added_tokens=(*LLAMA_3_TOKENS, "<vila/sentinel>", "<image>", "<vila/video>"),
    )


def test_finished_conversations_and_stop_tokens_of_the_main_branch(golden, forms, checkpoints):
    llama_3, seen = prompt_form(llama_3_tokenizer(checkpoints), "nvila"), set()
    for record in records(golden, "main"):
        mode = record["conv_mode"]
        form = forms["nvila-llama" if record["tokenizer"] == "sentencepiece" else "nvila"]
        form = llama_3 if mode == "llama_3" else form
        style = vila_style_for("", era="nvila", chosen=mode, has_own_template=mode == "auto")
        for own in [style] if style else [None, VILA_STYLES["qwen2"]]:
            written = form.render(conversation(record), own, add_generation_prompt=False)
            assert form.encode(written, [1] * written.count("<image>")) == record["input_ids"], record
            stops = [form.tokenizer.decode([i], skip_special_tokens=False) for i in form.stop_ids(own)]
            assert sorted(stops) == record["stop_tokens"]
        seen.add(mode)
    assert seen == {"auto", "vicuna_v1", "hermes-2", "llama_3"}


def test_finished_conversations_of_the_older_branch(golden, forms):
    form, seen = forms["vila1.5"], set()
    for record in records(golden, "vila15"):
        messages = conversation(record)
        if record["conv_mode"] == "plain":  # a caption: the reference leaves nothing of the question but the picture
            messages[0] = user(IMAGE)
        written = form.render(messages, get_vila_style(record["conv_mode"]), add_generation_prompt=False)
        assert form.encode(written, [1] * written.count("<image>")) == record["input_ids"], record
        seen.add(record["conv_mode"])
    assert seen == {"vicuna_v1", "llama_2", "plain"}


def test_the_newline_after_every_picture(forms):
    assert forms["nvila"].after_image == (198,)  # "\n"
    assert forms["nvila-llama"].after_image == (1, 362, 13)  # BOS, word start, newline
    assert forms["vila1.5"].after_image == () and forms["vila1.5"].image_id == -200


@pytest.mark.parametrize(
    ("name", "content", "segments", "expected"),
    [
        # One line per tile, also for a single tile; messages are trimmed, which takes the last newline.
        ("dynamic", [IMAGE, text("Why?")], [3], "<image>\n<image>\n<image>\nWhy?"),
        ("dynamic", [IMAGE, text("Why?")], [1], "<image>\nWhy?"),
        ("dynamic", [text("Why? "), IMAGE], [2], "Why? <image>\n<image>"),
        # Only a picture that is alone is cut into tiles.
        ("dynamic", [IMAGE, text("Why?"), IMAGE], [1, 1], "<image>Why?<image>"),
        ("nvila", [IMAGE, text("Why?")], [1], "<image>Why?"),
        ("nvila", [text(" this "), IMAGE, text("or"), text("that?\n")], [1], "this <image>orthat?"),
    ],
)
def test_marks_of_nvila(name, content, segments, expected, forms):
    form = forms[name]
    ids = form.encode(form.render([user(*content)], None), segments)
    whole = f"<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n{expected}<|im_end|>\n"
    assert ids == form.tokenizer.encode(whole + "<|im_start|>assistant\n")


SHOTS = [
    user(IMAGE, text("What is it?")),
    assistant("a cat"),
    user(text("And "), IMAGE, text(" this?")),
    assistant("a dog"),
    user(IMAGE, text("What is it?")),
]


def test_examples_in_context(forms):
    system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    system += "detailed, and polite answers to the user's questions."
    older = forms["vila1.5"].render(SHOTS, VILA_STYLES["vicuna_v1"])
    assert older == (
        f"{system} USER: <image>\nWhat is it? ASSISTANT: a cat</s>USER: And <image>\n this? ASSISTANT: a dog</s>"
        "USER: <image>\nWhat is it? ASSISTANT:"
    )
    newer = forms["dynamic"].render([{"role": "system", "content": " Be brief. "}, *SHOTS], None)
    assert newer == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>What is it?<|im_end|>\n"
        "<|im_start|>assistant\na cat<|im_end|>\n<|im_start|>user\nAnd <image> this?<|im_end|>\n"
        "<|im_start|>assistant\na dog<|im_end|>\n<|im_start|>user\n<image>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert forms["vila1.5"].encode(older, [1, 1, 1]).count(-200) == 3
    assert forms["dynamic"].encode(newer, [1, 1, 1]).count(forms["dynamic"].image_id) == 3


def test_videos_are_their_frames(forms):
    messages = [user(IMAGE, VIDEO, text("Why?")), assistant("x"), user(VIDEO, text("y"))]
    older = forms["vila1.5"].render(messages, VILA_STYLES["vicuna_v1"], [2, 1])
    assert older.endswith("USER: <image>\n<image>\n<image>\nWhy? ASSISTANT: x</s>USER: <image>\ny ASSISTANT:")
    newer = forms["dynamic"].render(messages, None, [2, 1])
    assert "user\n<image><image><image>Why?<|im_end|>" in newer and "user\n<image>y<|im_end|>" in newer
    assert "user\n<image>\nWhy?" in forms["dynamic"].render([user(VIDEO, text("Why?"))], None, [1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vila1.5", "a<image>\n<image>\n b <image>c<image>\n"),
        ("dynamic", "a<image><image> b <image>c<image>"),
    ],
)
def test_videos_in_raw_prompts(name, expected, forms):
    assert forms[name].place_frames("a<vila/video> b <image>c<vila/video>", [2, 1]) == expected


def test_videos_in_raw_prompts_of_one_frame(forms):
    assert forms["dynamic"].place_frames("<vila/video>Why?", [1]) == "<image>\nWhy?"
    with pytest.raises(PromptError, match="1 video placeholders, but 0 videos"):
        forms["dynamic"].place_frames("<vila/video>Why?", [])
    with pytest.raises(PromptError, match="0 video placeholders, but 1 videos"):
        forms["dynamic"].render([user(IMAGE)], None, [1])


@pytest.mark.parametrize("name", ["vila1.5", "dynamic", "pooled"])
def test_pictures_and_videos_keep_their_order(name, forms):
    text = "<image> or <vila/video>?"
    assert forms[name].place_frames(text, [None, 2])
    with pytest.raises(PromptError, match=r"given in another order.*<image> and <vila/video>"):
        forms[name].place_frames(text, [2, None])


def test_pooled_videos_keep_their_placeholder(forms):
    form, tokenizer = forms["pooled"], forms["pooled"].tokenizer
    messages = [user(IMAGE, VIDEO, text("Why?")), assistant("x"), user(VIDEO, text("y "))]
    written = form.render(messages, None, [None, 2, 1])
    assert "user\n<image>\n<vila/video>Why?<|im_end|>" in written and "user\n<vila/video>y<|im_end|>" in written
    assert form.place_frames(written, [None, 2, 1]) == written
    ids = form.encode(written, [1])
    assert ids == tokenizer.encode(written) and ids.count(form.image_id) == 1
    with pytest.raises(PromptError, match="2 video placeholders, but 1 videos"):
        form.render(messages, None, [None, 2])


def test_splicing_writes_what_the_encoders_put_around_visual_tokens(forms):
    form = forms["pooled"]
    start, sep, a, b = (form.tokenizer.encode(words) for words in ("one", "two", "a", "b"))
    ids = form.encode("a<vila/video>b<image>", [1])
    pooled = [*start, -1, *start, -1, *sep, *start, -1, *sep]  # two pooled frames, then one; nothing ends a frame
    assert form.splice(ids, -1, [(2, 1)]) == [*a, *pooled, *b, -1, 198]
    several = form.splice(form.encode("<vila/video><vila/video>", []), -1, [(1,), (2,)])
    assert several == [*start, -1, *sep, *start, -1, *start, -1, *sep]


@pytest.mark.parametrize(
    ("name", "expected"), [("vila1.5", [-1]), ("nvila", [-1, 198]), ("nvila-llama", [-1, 1, 362, 13])]
)
def test_splicing_of_pictures(name, expected, forms):
    form = forms[name]
    ids = form.encode("a<image><image>b", [1, 1])
    at = ids.index(form.image_id)
    assert form.splice(ids, -1) == [*ids[:at], *expected, *expected, *ids[at + 2 :]]


@pytest.mark.parametrize("name", ["vila1.5", "dynamic"])
@pytest.mark.parametrize("segments", [[], [1, 1]])
def test_pictures_and_placeholders_differ(name, segments, forms):
    with pytest.raises(PromptError, match=rf"1 image placeholders, but {len(segments)} images"):
        forms[name].encode("a <image> b", segments)


def test_llava_is_as_before(folders):
    form = prompt_form(Tokenizer.from_folder(folders / "hired"), None)
    messages = [user(text("a"), IMAGE, VIDEO)]
    written = form.render(messages, STYLES["vicuna_v1"], [2])
    assert written.endswith("USER: <image>\n<image>\n<image>\na ASSISTANT:")
    assert form.encode(written, [1, 1, 1]) == form.tokenizer.encode(written)
    assert form.image_id == form.tokenizer.image_token_id and form.after_image == ()
    assert form.stop_ids(STYLES["vicuna_v1"]) == form.tokenizer.eos_ids
    assert form.encode("<s>hi", []) == form.tokenizer.encode("hi")


def test_bos_of_later_pieces_is_dropped_as_in_the_reference(forms, checkpoints):
    ids = forms["vila1.5"].encode("<image><image>a", [1, 1])
    assert ids == [1, -200, -200, *forms["vila1.5"].tokenizer.encode("a")[1:]]
    # Without BOS nothing is dropped, but a prompt that writes BOS itself loses the first token of every later piece.
    tokenizer = llama_3_tokenizer(checkpoints, bos_token="<|begin_of_text|>")
    form, newline, why = prompt_form(tokenizer, "vila1.5"), tokenizer.encode("\n"), tokenizer.encode("Why?")
    assert form.encode("<image>\nWhy?", [1]) == [-200, *newline, *why]
    assert form.encode("<|begin_of_text|><image>\nWhy?", [1]) == [tokenizer.bos_id, -200, *why]


# Ids by sentencepiece 0.2.3, of the Llama model with two user-defined symbols more.
SYMBOLS = {"<|im_start|>": 400, "<|im_end|>": 401}
BY_SENTENCEPIECE = {
    "<|im_start|>user\nWhat is two?<|im_end|>": [362, 400, 308, 268, 13, 344, 276, 281, 328, 388, 401],
    "<|im_end|><|im_start|>a": [362, 401, 400, 368],
    "a <|im_end|> b": [261, 362, 401, 269],
    " USER: a": [362, 362, 343, 340, 61, 261],
    "  two": [362, 362, 328],
    "\nDescribe": [362, 13, 389, 270, 373, 304, 346],
    " ": [362, 362],
    "": [],
}


def test_word_starts_are_those_of_sentencepiece(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["vila15_llama_siglip/model"], tmp_path / "llm")
    with (folder / "tokenizer.model").open("ab") as file:
        for symbol in SYMBOLS:  # ModelProto.pieces: text (1), score (2), type (3), which is 4 for user-defined
            piece = b"\x0a" + bytes([len(symbol)]) + symbol.encode() + b"\x15\0\0\0\0\x18\x04"
            file.write(b"\x0a" + bytes([len(piece)]) + piece)
    form = prompt_form(vila_tokenizer(folder), "vila1.5")
    for piece, ids in BY_SENTENCEPIECE.items():
        assert form.encode(piece, []) == [1, *ids]
        assert form.encode(f"\n<image>{piece}", [1]) == [1, 362, 13, -200, *ids]
    assert form.stop_ids(VILA_STYLES["hermes_2"]) == (2, SYMBOLS["<|im_end|>"])


def test_stored_tokens_are_told_from_appended_ones(loaded):
    sizes = {(t.stored_size, t.vocab_size, t.image_token_id) for t in loaded.values()}
    assert sizes == {(400, 403, 401), (406, 406, 404)}


def test_a_tokenizer_of_vocabulary_merges_and_added_tokens(cases, checkpoints, tmp_path):
    source = checkpoints["nvila_qwen2_dynamic_s2"]
    backend = json.loads((source / "tokenizer.json").read_text())
    config = json.loads((source / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Qwen2Tokenizer"}))
    (tmp_path / "vocab.json").write_text(json.dumps(backend["model"]["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in backend["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    added = {token["content"]: token["id"] for token in backend["added_tokens"] if token["id"] < 403}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = vila_tokenizer(tmp_path)
    assert (tokenizer.stored_size, tokenizer.vocab_size) == (403, 406)
    form = prompt_form(tokenizer, "nvila")
    for case in (cases["nvila_qwen2_dynamic_s2_0"], cases["nvila_qwen2_dynamic_s2_1"]):
        check_ids(form, form.render(case.messages, None), case)


def test_the_setting_of_the_folder_is_overruled(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["vila15_llama_siglip/model"], tmp_path / "llm")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    expected = vila_tokenizer(folder).encode("a</s>b")
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": True}))
    assert vila_tokenizer(folder).encode("a</s>b") == expected != Tokenizer.from_folder(folder).encode("a</s>b")


def test_no_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no tokenizer; looked for tokenizer\.json"):
        vila_tokenizer(tmp_path)


def test_a_broken_template_still_leaves_the_end_token(checkpoints):
    tokenizer = vila_tokenizer(checkpoints["nvila_qwen2_dynamic_s2"])
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert prompt_form(tokenizer, "nvila").stop_ids(None) == tokenizer.eos_ids
