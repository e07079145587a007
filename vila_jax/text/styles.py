"""Conversation styles of models whose checkpoint brings no chat template.

A style is data: the text around each kind of turn. With `vicuna_v1`, for instance:

    A chat between … questions. USER: <image>\\nWhat is this? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:
    └────────── system ───────┘└──────────── user ───────────┘└─ assistant ──────┘└── user ──┘└ generation

Source: LLaVA `llava/conversation.py` (LLaVA-1.5 and LLaVA-NeXT); the names are theirs.
"""

import dataclasses
from collections.abc import Mapping

from vila_jax.errors import ConfigError, PromptError
from vila_jax.text import messages as messages_lib

_TEXT = "{text}"


@dataclasses.dataclass(frozen=True)
class Style:
    """The text around each kind of turn; `{text}` stands for what the turn says.

    Attributes:
      system: a system turn.
      user: a user turn.
      assistant: a finished assistant turn.
      generation: what invites the model to answer.
      default_system: what the system says when the conversation does not say it; empty for no system turn.
      no_system: stands in the place of the system turn of a conversation that has none.
      begin: stands before the first turn.
      between_rounds: stands before every user turn but the first.
      system_inside_user: the system turn is part of the first user's text (Llama 2), instead of standing before it.
      conversation_end: what a turn ends with, and what the last one ends with instead when no answer is invited.
      image: one image inside a user's text; `{image}` stands for the placeholder.
    """

    system: str
    user: str
    assistant: str
    generation: str
    default_system: str = ""
    no_system: str = ""
    begin: str = ""
    between_rounds: str = ""
    system_inside_user: bool = False
    conversation_end: tuple[str, str] = ("", "")
    image: str = "{image}\n"


_HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_LLAMA_3_TURN = "<|start_header_id|>{role}<|end_header_id|>\n\n"
_VICUNA = Style(
    system="{text} ",
    user="USER: {text} ",
    assistant="ASSISTANT: {text}</s>",
    generation="ASSISTANT:",
    default_system="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.",
)
_MISTRAL = Style(
    system="<<SYS>>\n{text}\n<</SYS>>\n\n",
    user="[INST] {text} [/INST]",
    assistant=" {text} </s>",
    generation="",
    system_inside_user=True,
)
_QWEN_2 = Style(
    system="<|im_start|>system\n{text}<|im_end|>\n",
    user="<|im_start|>user\n{text}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{text}<|im_end|>\n",
    generation="<|im_start|>assistant\n",
    default_system="You are a helpful assistant.",
)

STYLES: Mapping[str, Style] = {
    "vicuna_v1": _VICUNA,
    "llava_v1_mistral": _MISTRAL,
    "mistral_instruct": _MISTRAL,
    "llama_2": dataclasses.replace(_MISTRAL, default_system=_HELPFUL, between_rounds="<s>"),
    "llama_3": Style(
        system=_LLAMA_3_TURN.replace("{role}", "system") + "{text}<|eot_id|>",
        user=_LLAMA_3_TURN.replace("{role}", "user") + "{text}<|eot_id|>",
        assistant=_LLAMA_3_TURN.replace("{role}", "assistant") + "{text}<|eot_id|>",
        generation=_LLAMA_3_TURN.replace("{role}", "assistant"),
        default_system=_HELPFUL,
        begin="<|begin_of_text|>",
    ),
    "qwen2": _QWEN_2,
    "chatml": _QWEN_2,
    # Nous-Hermes-2-Yi-34B: ChatML without the newlines between turns
    "hermes_2": Style(
        system="<|im_start|>system\n{text}<|im_end|>",
        user="<|im_start|>user\n{text}<|im_end|>",
        assistant="<|im_start|>assistant\n{text}<|im_end|>",
        generation="<|im_start|>assistant\n",
        default_system="Answer the questions.",
    ),
    # the captions of LLaVA's first training stage: `<image>` + caption + newline
    "plain": Style(system=_TEXT, user=_TEXT, assistant="{text}\n", generation="", image="{image}"),
}

# What a model's name tells, looked at in this order, and before the kind of its decoder.
_BY_NAME = (
    (("llama-3", "llama3", "llama_3"), "llama_3"),
    (("llama-2", "llama2", "llama_2"), "llama_2"),
    (("vicuna",), "vicuna_v1"),
    (("mistral",), "mistral_instruct"),
    (("qwen",), "qwen2"),
    (("hermes", "yi-34b", "v1.6-34b"), "hermes_2"),
)
_BY_DECODER = {"llama": "vicuna_v1", "mistral": "mistral_instruct", "qwen2": "qwen2"}


def style_for(decoder: str, name: str = "") -> Style:
    """The style of a model.

    Args:
      decoder: kind of the language model, `model_type` of its config: `llama`, `mistral`, `qwen2`.
      name: name of the model or path of its folder. Its last part tells more than the decoder, where one kind of
        decoder serves several families.

    Raises:
      ConfigError: nothing is known of this kind of decoder.
    """
    hint = name.lower().rstrip("/").rpartition("/")[2]
    by_name = next((style for words, style in _BY_NAME if any(word in hint for word in words)), None)
    style = by_name or _BY_DECODER.get(decoder)
    if style is None:
        raise ConfigError(
            f"no conversation style is known for {decoder!r}",
            where="model_type",
            fix=f"Supported are {', '.join(_BY_DECODER)}; pass a raw prompt to any other model.",
        )
    return STYLES[style]


def get_style(name: str) -> Style:
    """The style with this name.

    Raises:
      ConfigError: there is none.
    """
    if name not in STYLES:
        raise ConfigError(f"unknown conversation style {name!r}", fix=f"Use one of {', '.join(STYLES)}.")
    return STYLES[name]


def render_style(
    messages: object, style: Style, *, image_token: str = "<image>", add_generation_prompt: bool = True
) -> str:
    """Renders a conversation in a style.

    Args:
      messages: the conversation: a system message or none, then user and assistant in turn.
      style: the style.
      image_token: placeholder of one image.
      add_generation_prompt: whether the text ends by inviting the model to answer; the user must then speak last.

    Raises:
      PromptError: the messages are malformed or out of turn.
    """
    turns = [
        (message["role"], messages_lib.flat_text(message["content"], style.image.replace("{image}", image_token)))
        for message in messages_lib.validate(messages)
    ]
    system = turns.pop(0)[1] if turns[0][0] == "system" else style.default_system
    _check_turns([role for role, _ in turns], add_generation_prompt)
    system = _fill(style.system, system) if system else style.no_system
    if style.system_inside_user:
        turns[0] = ("user", system + turns[0][1])
        system = ""
    pieces = [style.begin, system]
    for index, (role, text) in enumerate(turns):
        if role == "user" and index:
            pieces.append(style.between_rounds)
        pieces.append(_fill(style.user if role == "user" else style.assistant, text))
    text = "".join(pieces)
    end, last = style.conversation_end
    return text + style.generation if add_generation_prompt else text.removesuffix(end) + last


def _fill(turn: str, text: str) -> str:
    before, after = turn.split(_TEXT)  # not `str.format`: the text may hold braces
    return before + text + after


def _check_turns(roles: list[str], add_generation_prompt: bool) -> None:
    expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(roles))]
    if not roles or roles != expected:
        raise PromptError(
            f"the roles are {', '.join(roles) or 'missing'}, but must alternate user, assistant, user, …",
            where="messages",
            fix="Start with at most one system message, then let user and assistant speak in turn, the user first.",
        )
    if add_generation_prompt and roles[-1] != "user":
        raise PromptError("the last message is the assistant's", where="messages", fix="End with a user message.")
