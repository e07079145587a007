"""Conversation styles write the prompts of LLaVA's own conversation code."""

import json

import pytest

from vila_jax.errors import ConfigError, PromptError
from vila_jax.text.styles import STYLES, get_style, render_style, style_for


def conversation(*turns):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]


def test_prompts_are_those_of_the_reference(golden):
    cases = json.loads((golden / "text" / "conversations.json").read_text())["cases"]
    for case in cases:
        assert render_style(conversation(*case["turns"]), STYLES[case["style"]]) == case["prompt"]
    assert {case["style"] for case in cases} == {
        "vicuna_v1", "mistral_instruct", "llama_2", "llama_3", "qwen2", "hermes_2",
    }  # fmt: skip


IMAGE = {"type": "image", "path": "a.png"}
ASK = [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What is shown in this image?"}]}]


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        # The formats that Hugging Face documents for the checkpoints of LLaVA-1.5 and LLaVA-NeXT.
        ("vicuna_v1", "Be brief. USER: <image>\nWhat is shown in this image? ASSISTANT:"),
        ("llava_v1_mistral", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nWhat is shown in this image? [/INST]"),
        ("mistral_instruct", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nWhat is shown in this image? [/INST]"),
        ("llama_2", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nWhat is shown in this image? [/INST]"),
        (
            "llama_3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is shown in this image?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat is shown in this image?"
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "hermes_2",
            "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\n<image>\nWhat is shown in this image?"
            "<|im_end|><|im_start|>assistant\n",
        ),
        ("plain", "Be brief.<image>What is shown in this image?"),
    ],
)
def test_system_and_image(style, expected):
    messages = [{"role": "system", "content": "Be brief."}, *ASK]
    assert render_style(messages, get_style(style)) == expected


def test_several_turns_without_a_system_prompt():
    messages = [{"role": "system", "content": ""}, *conversation("one", "two", "three")]
    expected = "USER: one ASSISTANT: two</s>USER: three ASSISTANT:"  # the documented format of LLaVA-1.5
    assert render_style(messages, STYLES["vicuna_v1"]) == expected
    assert render_style(messages, STYLES["llama_2"]) == "[INST] one [/INST] two </s><s>[INST] three [/INST]"


def test_a_caption_of_the_first_training_stage():
    messages = [{"role": "user", "content": [IMAGE]}, {"role": "assistant", "content": "The car is red."}]
    assert render_style(messages, STYLES["plain"], add_generation_prompt=False) == "<image>The car is red.\n"


def test_all_images_stand_before_the_text():
    content = [{"type": "text", "text": "this"}, IMAGE, {"type": "text", "text": "or that?"}, IMAGE]
    text = render_style([{"role": "user", "content": content}], STYLES["mistral_instruct"], image_token="<img>")
    assert text == "[INST] <img>\n<img>\nthis or that? [/INST]"


def test_braces_in_a_message_are_text():
    text = render_style(conversation("{text} {0} {image}"), STYLES["vicuna_v1"])
    assert text.endswith("USER: {text} {0} {image} ASSISTANT:")


@pytest.mark.parametrize(
    "roles",
    [["assistant"], ["user", "user"], ["user", "system", "user"], ["system"], ["user", "assistant", "assistant"]],
)
def test_roles_out_of_turn(roles):
    with pytest.raises(PromptError, match=r"alternate.*at most one system message"):
        render_style([{"role": role, "content": "x"} for role in roles], STYLES["qwen2"])


def test_the_user_speaks_last():
    messages = conversation("a", "b")
    with pytest.raises(PromptError, match="last message is the assistant's"):
        render_style(messages, STYLES["qwen2"])
    assert render_style(messages, STYLES["qwen2"], add_generation_prompt=False).endswith("b<|im_end|>\n")


@pytest.mark.parametrize(
    ("decoder", "name", "style"),
    [
        ("llama", "", "vicuna_v1"),
        ("mistral", "", "mistral_instruct"),
        ("qwen2", "", "qwen2"),
        ("llama", "llava-hf/llava-1.5-7b-hf", "vicuna_v1"),
        ("llama", "llava-hf/llava-v1.6-vicuna-13b-hf", "vicuna_v1"),
        ("mistral", "llava-hf/llava-v1.6-mistral-7b-hf", "llava_v1_mistral"),
        ("llama", "llava-hf/llava-v1.6-34b-hf", "hermes_2"),
        ("llama", "llava-hf/llama3-llava-next-8b-hf", "llama_3"),
        ("llama", "/models/Llama-3-VILA1.5-8b/", "llama_3"),
        ("qwen2", "llava-hf/llava-next-72b-hf", "qwen2"),
        ("llama", "/home/mistral-fan/llava", "vicuna_v1"),
    ],
)
def test_style_of_a_model(decoder, name, style):
    assert style_for(decoder, name) is STYLES[style]


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"'mamba'.*llama, mistral, qwen2"):
        style_for("mamba")
    with pytest.raises(ConfigError, match=r"'vicuna'.*vicuna_v1"):
        get_style("vicuna")
