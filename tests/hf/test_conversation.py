"""A VILA that becomes Hugging Face's LLaVA keeps its conversation: transformers and we make the same ids of it."""

import itertools
import json
import re

import pytest
import tokenizers
import torch
import transformers
from PIL import Image

from tests.hf.vila import CHECKPOINTS, copy, edit_json, edit_tensors, small_files, with_llava_projector
from vila_jax.errors import ConfigError, PromptError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.convert import convert
from vila_jax.hf.export import export
from vila_jax.hf.load import load_state
from vila_jax.model import from_pretrained

V1, V1ARCH, LITE = "v1_single_folder", "v1arch_llama_clip_pad", "nvila_lite_qwen2_dynamic"
PICTURE = Image.new("RGB", (56, 56), (9, 99, 200))
LLAMA_3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")


def _llama(folder):
    return copy(V1ARCH, folder)


def _llama_3(folder):
    """VILA1.5 with a byte-level tokenizer, whose texts do not begin with a word start."""
    source = copy(V1ARCH, folder)
    made = tokenizers.Tokenizer.from_file(str(CHECKPOINTS / LITE / "llm" / "tokenizer.json"))
    facts = json.loads(made.to_str())
    facts["added_tokens"] = [token for token in facts["added_tokens"] if "vila" not in token["content"]][:3]
    made = tokenizers.Tokenizer.from_str(json.dumps(facts))
    made.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in LLAMA_3])
    begin = LLAMA_3[0]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, made.token_to_id(begin))]
    )
    names = {"bos_token": begin, "eos_token": LLAMA_3[-1]}
    (source / "llm" / "special_tokens_map.json").unlink()
    (source / "llm" / "tokenizer_config.json").unlink()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(source / "llm")
    edit_json(source / "llm" / "config.json", vocab_size=448)
    edit_json(source / "llm" / "generation_config.json", eos_token_id=made.token_to_id(LLAMA_3[-1]))
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    longer = {name: torch.ones(448, 64, dtype=torch.bfloat16) for name in tables}
    edit_tensors(source / "llm" / "model.safetensors", lambda tensors: tensors | longer)
    return source


def _qwen_2(folder, template="qwen2"):
    return with_llava_projector(copy(LITE, folder), chat_template=template)


def _auto(folder):
    return _qwen_2(folder, "auto")


# Source, era to take it for, style; and what a picture is followed by where text follows, and always.
CASES = [
    *((_llama, None, style, " ", "") for style in ("vicuna_v1", "llama_2", "mistral", "hermes-2", "plain")),
    (_llama, None, None, " ", ""),
    (_llama, "nvila", "vicuna_v1", "", "<s> \n"),
    (_llama_3, None, "llama_3", "", ""),
    (_llama_3, None, "llama_3_vila15", "", ""),
    (_qwen_2, None, None, "", "\n"),
    (_qwen_2, None, "hermes-2", "", "\n"),
    (_qwen_2, None, "plain", "", "\n"),
    (_auto, None, None, "", "\n"),
]


def _conversation(system, rounds, pictures):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for number in range(rounds):
        parts = [{"type": "text", "text": ["What is {this}?", "And 'now'?"][number]}]
        image = {"type": "image", "image": PICTURE}
        if pictures:
            parts = [*parts, image] if number else [image, *parts]
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": "a cat\\n"})
    return messages[:-1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__[1:]}-{case[1]}-{case[2]}")
def test_the_same_ids_everywhere(case, tmp_path):
    """Of the source, of the export read by us, and by the tokenizer and the processor of transformers."""
    make, era, style, before_text, always = case
    source = make(tmp_path)
    folder = tmp_path / "hf"
    convert(open_checkpoint(source, era=era), folder, to="hf", style=style)
    model, again = from_pretrained(source, era=era, style=style), from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    placeholder = [again.tokenizer.image_token_id, *model.form.after_image]
    assert processor.chat_template == tokenizer.chat_template == again.tokenizer.chat_template
    for facts in itertools.product((None, "", "Be brief."), (1, 2), (False, True)):
        messages = _conversation(*facts)
        text = model.form.render(messages, model.style)
        expected = re.sub(r"<image>(?=[\s\S])", f"<image>{before_text}", text).replace("<image>", f"<image>{always}")
        expected = before_text * text.startswith(" ") + expected  # of Vicuna with an empty system prompt
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert theirs == again.form.render(messages, again.style) == expected, facts
        ids = [
            i
            for token in model.token_ids(messages=messages)
            for i in (placeholder if token == model.form.image_id else [token])
        ]
        assert again.token_ids(messages=messages) == ids, facts
        has_bos = tokenizer.bos_token is not None and theirs.startswith(tokenizer.bos_token)
        assert tokenizer(theirs, add_special_tokens=not has_bos)["input_ids"] == ids, facts
        processed = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert _one_a_picture(processed["input_ids"][0], placeholder[0]) == ids, facts


def _one_a_picture(ids, placeholder):
    return [i for n, i in enumerate(ids) if i != placeholder or n == 0 or ids[n - 1] != placeholder]


@pytest.mark.parametrize("make", [_llama, _llama_3, _auto])
def test_finished_conversations(make, tmp_path):
    source, folder = make(tmp_path), tmp_path / "hf"
    style = "llama_3" if make is _llama_3 else None
    convert(open_checkpoint(source), folder, to="hf", style=style)
    model, tokenizer = from_pretrained(source, style=style), transformers.AutoTokenizer.from_pretrained(folder)
    messages = [*_conversation("Be brief.", 2, False), {"role": "assistant", "content": "a dog"}]
    expected = model.form.render(messages, model.style, add_generation_prompt=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected


def test_out_of_turn(tmp_path):
    convert(open_checkpoint(CHECKPOINTS / V1), tmp_path / "hf", to="hf")
    ours = from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    said = {role: {"role": role, "content": "x"} for role in ("user", "assistant", "system")}
    for roles in (["assistant"], ["user", "user"], ["user", "system"], ["system"], ["user", "assistant"]):
        messages = [said[role] for role in roles]
        with pytest.raises(PromptError):
            ours.form.render(messages, ours.style)
        with pytest.raises(Exception, match=r"the roles must be user|no user message|last message must"):
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_part_that_is_not_understood_is_not_lost_in_silence(tmp_path):
    convert(open_checkpoint(CHECKPOINTS / V1), tmp_path / "hf", to="hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    parts = [{"type": "audio"}, {"type": "text", "text": "What?"}]
    with pytest.raises(Exception, match="only text and images"):
        tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)


def test_what_ends_an_answer(tmp_path):
    """transformers' `generate` only knows what the generation config says."""
    source = _llama_3(tmp_path)
    convert(open_checkpoint(source), tmp_path / "hf", to="hf", style="llama_3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id
    assert theirs == tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
    convert(open_checkpoint(CHECKPOINTS / V1ARCH), tmp_path / "vicuna", to="hf")
    plain = (tmp_path / "vicuna" / "generation_config.json").read_bytes()
    assert plain == (CHECKPOINTS / V1ARCH / "llm" / "generation_config.json").read_bytes()


def test_the_name_tells_the_style(tmp_path):
    source = _llama_3(tmp_path).rename(tmp_path / "Llama-3-VILA1.5-8b")
    convert(open_checkpoint(source), tmp_path / "hf", to="hf")
    convert(open_checkpoint(source), tmp_path / "chosen", to="hf", style="vicuna_v1")
    template, chosen = ((tmp_path / name / "chat_template.jinja").read_text() for name in ("hf", "chosen"))
    assert "<|start_header_id|>" in template and "<|start_header_id|>" not in chosen


def test_a_model_in_memory(tmp_path):
    checkpoint = open_checkpoint(CHECKPOINTS / V1)
    _, state = load_state(checkpoint, dtype="float32")
    for style in (None, "llama_2"):
        export(checkpoint, state, tmp_path / f"{style}", to="hf", style=style)
        convert(checkpoint, tmp_path / f"{style} converted", to="hf", style=style)
        assert small_files(tmp_path / f"{style}") == small_files(tmp_path / f"{style} converted")


@pytest.mark.parametrize(("make", "to"), [(_llama, "vila"), (_qwen_2, "vila"), (_llama, "llava")])
def test_the_way_back_drops_the_template(make, to, tmp_path):
    """VILA's code has its own, and keeps it: here in `tokenizer_config.json`."""
    source = make(tmp_path)
    edit_json(source / "vision_tower" / "config.json", num_attention_heads=1) if to == "llava" else None
    convert(open_checkpoint(source), tmp_path / "hf", to="hf")
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "back", to=to)
    back = small_files(tmp_path / "back")
    assert not [name for name in back if name.endswith(".jinja")]
    prefix = "llm/" if to == "vila" else ""
    theirs = json.loads((source / "llm" / "tokenizer_config.json").read_text())
    assert json.loads(back[f"{prefix}tokenizer_config.json"]).get("chat_template") == theirs.get("chat_template")


def test_the_way_back_restores_a_template_in_a_file_of_its_own(tmp_path):
    source = _auto(tmp_path)
    path = source / "llm" / "tokenizer_config.json"
    own = f"\n  {json.loads(path.read_text())['chat_template']}\n"
    edit_json(path, chat_template=...)
    (source / "llm" / "chat_template.jinja").write_text(own)
    convert(open_checkpoint(source), tmp_path / "hf", to="hf")
    model, again = from_pretrained(source), from_pretrained(tmp_path / "hf")
    messages = _conversation(None, 2, False)
    assert again.form.render(messages, again.style) == model.form.render(messages, model.style)
    convert(open_checkpoint(tmp_path / "hf"), tmp_path / "back", to="vila")
    assert (tmp_path / "back" / "llm" / "chat_template.jinja").read_text() == own


def test_a_style_has_no_place_elsewhere(tmp_path):
    with pytest.raises(ConfigError, match=r"style: .* becomes Hugging Face's LLaVA, and nowhere else"):
        convert(open_checkpoint(CHECKPOINTS / V1), tmp_path / "ours", to="vila", style="plain")
    with pytest.raises(ConfigError, match=r"unknown conversation style 'klingon'"):
        convert(open_checkpoint(CHECKPOINTS / V1), tmp_path / "ours", to="hf", style="klingon")
    assert not list(tmp_path.iterdir())
