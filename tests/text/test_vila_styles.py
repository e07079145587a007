"""VILA's styles where no golden ids show them, and which style a checkpoint speaks."""

import pytest

from vila_jax.errors import ConfigError
from vila_jax.text.styles import render_style
from vila_jax.text.template import render_chat
from vila_jax.text.vila_styles import VILA_STYLES, get_vila_style, vila_style_for

TURNS = [
    {"role": "user", "content": "<image>\none"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]
# VILA's chat template of this name, with the spaces and newlines taken out as its code does
MISTRAL = (
    "{{ bos_token }}{% for message in messages if message['content'] is not none %}{% if message['role'] == 'system' %}"
    "{{ message['content'] | trim + '\\n\\n' }}{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)


def test_llama_3_of_the_older_branch():
    system, user = ("<|start_header_id|>" + role + "<|end_header_id|>\n\n" for role in ("system", "user"))
    assert render_style([{"role": "system", "content": "Be brief."}, *TURNS], VILA_STYLES["llama_3_vila15"]) == (
        f"<|begin_of_text|>{system}Be brief.<|end_of_text|>{user}<image>\none<|end_of_text|>"
        f"{system}two<|end_of_text|>{user}three<|end_of_text|>{system}"
    )
    text = render_style(TURNS[:2], VILA_STYLES["llama_3_vila15"], add_generation_prompt=False)
    assert text.endswith(f"{system}two<|end_of_text|>")


def test_only_the_last_turn_of_llama_3_ends_otherwise():
    asked = render_style(TURNS, VILA_STYLES["llama_3"])
    assert "<|end_of_text|>" not in asked and asked.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    finished = render_style(TURNS[:2], VILA_STYLES["llama_3"], add_generation_prompt=False)
    assert finished.endswith("two<|end_of_text|>") and finished.count("<|end_of_text|>") == 1


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_mistral_is_its_template(system, turns):
    messages, go = [*system, *TURNS[:turns]], turns % 2 == 1
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    expected = render_chat(messages, MISTRAL, special_tokens=special, add_generation_prompt=go)
    assert render_style(messages, VILA_STYLES["mistral"], add_generation_prompt=go) == expected


@pytest.mark.parametrize(
    ("decoder", "name", "era", "style"),
    [
        ("llama", "Efficient-Large-Model/VILA-7b", "v1", "vicuna_v1"),
        ("llama", "Efficient-Large-Model/VILA1.5-3b-s2", "vila1.5", "vicuna_v1"),
        ("llama", "VILA1.5-13b", "vila1.5", "vicuna_v1"),
        ("llama", "/models/Llama-3-VILA1.5-8b/", "vila1.5", "llama_3_vila15"),
        ("llama", "/models/Llama-3-VILA1.5-8b/", "nvila", "llama_3"),
        ("llama", "VILA1.5-40b", "vila1.5", "hermes_2"),
        ("llama", "/llama-3/model", "vila1.5", "vicuna_v1"),
        ("qwen2", "NVILA-Lite-2B", "nvila", "qwen2"),
        ("mistral", "", "v1", "mistral"),
    ],
)
def test_style_by_name_and_decoder(decoder, name, era, style):
    assert vila_style_for(decoder, name, era=era) is VILA_STYLES[style]


def test_what_decides_first():
    def choose(**facts):
        return vila_style_for("qwen2", **{"era": "nvila", **facts})

    own = {"has_own_template": True}
    assert choose(**own) is None and choose(**own, chosen="auto", template="auto") is None
    assert choose(**own, template="qwen2") is VILA_STYLES["qwen2"]
    assert choose(**own, template="qwen2", chosen="hermes-2") is VILA_STYLES["hermes_2"]
    assert choose(**own, name="VILA1.5-40b") is VILA_STYLES["hermes_2"]
    assert choose(**own, era="vila1.5") is VILA_STYLES["qwen2"]  # older code never looked at it
    assert choose(chosen="v1") is VILA_STYLES["vicuna_v1"]


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"'vicuna'.*vicuna_v1, llama_2"):
        get_vila_style("vicuna")
    with pytest.raises(ConfigError, match=r"chat_template.*'../x'"):
        vila_style_for("qwen2", era="nvila", template="../x")
    with pytest.raises(ConfigError, match=r"'mamba'.*raw prompt"):
        vila_style_for("mamba", era="vila1.5")
