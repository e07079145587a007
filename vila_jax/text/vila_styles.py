"""Conversation styles of VILA, under the names that its code gives them, and which of them a checkpoint speaks.

They differ from LLaVA's of the same name in system prompts, in ends of turns, and in what is left of a system turn that
says nothing. Source: VILA `llava/conversation.py`, main branch and branch `vila1.5`; `qwen2` and `mistral` are its chat
templates of these names.
"""

import dataclasses
from collections.abc import Mapping

from vila_jax.errors import ConfigError
from vila_jax.text.styles import STYLES, Style

_HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"


def _llama_3(assistant: str, end: str) -> Style:
    """Llama 3 with another header of the assistant's turns and another end of all turns."""
    user, generation = (_HEADER.replace("{role}", role) for role in ("user", assistant))
    return Style(
        system="<|begin_of_text|>" + _HEADER.replace("{role}", "system") + "{text}" + end,
        user=user + "{text}" + end,
        assistant=generation + "{text}" + end,
        generation=generation,
        default_system=STYLES["llama_3"].default_system,
        no_system=end,
    )


VILA_STYLES: Mapping[str, Style] = {
    "vicuna_v1": dataclasses.replace(STYLES["vicuna_v1"], no_system=" "),
    "llama_2": dataclasses.replace(
        STYLES["llama_2"],
        default_system="You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
        "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, "
        "or illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n\n"
        "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
        "something not correct. If you don't know the answer to a question, please don't share false information.",
        no_system="<<SYS>>\n\n<</SYS>>\n\n",
    ),
    "llama_3": dataclasses.replace(
        _llama_3("assistant", "<|eot_id|>"), conversation_end=("<|eot_id|>", "<|end_of_text|>")
    ),
    # as Llama-3-VILA1.5-8b was trained: its assistant speaks under the header of the system
    "llama_3_vila15": _llama_3("system", "<|end_of_text|>"),
    "hermes_2": dataclasses.replace(STYLES["hermes_2"], no_system="<|im_end|>"),
    "qwen2": dataclasses.replace(
        STYLES["qwen2"],
        default_system="You are a helpful assistant",  # without the full stop of Qwen2's own
        no_system="<|im_start|>system\n<|im_end|>\n",
    ),
    "mistral": Style(
        system="{text}\n\n",
        user="[INST] {text} [/INST]",
        assistant=" {text}</s>",
        generation="",
        begin="<s>",
    ),
    "plain": STYLES["plain"],
}

_ALIASES = {"v1": "vicuna_v1"}
# What a model's name tells, looked at in this order.
_BY_NAME = (
    (("vila1.5-3b", "vila1.5-13b"), "vicuna_v1"),
    (("vila1.5-8b", "llama-3", "llama3", "llama_3"), "llama_3"),
    (("vila1.5-40b", "hermes", "yi-34b"), "hermes_2"),
)
_BY_DECODER = {"llama": "vicuna_v1", "mistral": "mistral", "qwen2": "qwen2"}


def get_vila_style(name: str, *, where: str | None = None) -> Style:
    """The style with this name; `hermes-2` and `hermes_2` are one.

    Args:
      where: the file and key that name it, for the error.

    Raises:
      ConfigError: there is none.
    """
    key = name.replace("-", "_")
    key = _ALIASES.get(key, key)
    if key not in VILA_STYLES:
        fix = f"Use one of {', '.join(VILA_STYLES)}."
        raise ConfigError(f"unknown conversation style {name!r}", where=where, fix=fix)
    return VILA_STYLES[key]


def vila_style_for(
    decoder: str,
    name: str = "",
    *,
    era: str,
    chosen: str | None = None,
    template: str | None = None,
    has_own_template: bool = False,
) -> Style | None:
    """The style of a checkpoint. What is named first here decides: `chosen`, `template`, `name`, the own template.

    As in VILA the name goes before the checkpoint's own chat template: that of VILA1.5-40b or Llama-3-VILA1.5-8b may
    be their language model's, which they were not trained with.

    Args:
      decoder: kind of the language model, `model_type` of its config: `llama`, `mistral`, `qwen2`; decides last.
      name: name of the model or path of its folder, of which the last part counts.
      era: generation of VILA: `v1`, `vila1.5` or `nvila`. Those before NVILA never used a checkpoint's own template,
        and wrote Llama 3 in another way.
      chosen: name of a style that the user asks for; `auto` asks for nothing.
      template: `chat_template` of the root config.
      has_own_template: whether the tokenizer's files bring a chat template.

    Returns:
      The style; None where the checkpoint's own chat template speaks.

    Raises:
      ConfigError: a name is unknown, or nothing is known of this kind of decoder.
    """
    if chosen not in (None, "auto"):
        return get_vila_style(chosen, where="conversation style")
    if template not in (None, "auto"):
        return get_vila_style(template, where="config.json, key `chat_template`")
    hint = name.lower().rstrip("/").rpartition("/")[2]
    found = next((style for words, style in _BY_NAME if any(word in hint for word in words)), None)
    if found is None and era == "nvila" and has_own_template:
        return None
    found = found or _BY_DECODER.get(decoder)
    if found is None:
        raise ConfigError(
            f"no conversation style is known for {decoder!r}",
            where="model_type",
            fix=f"Choose one of {', '.join(VILA_STYLES)}, or pass a raw prompt.",
        )
    return VILA_STYLES["llama_3_vila15" if found == "llama_3" and era != "nvila" else found]
