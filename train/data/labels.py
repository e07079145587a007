"""What is learned of a conversation: the assistant's words and what ends them, and nothing else.

    ids      <s> … USER : <image> \\n What colour ? ASSISTANT : The car is red . </s>
    targets   .  …  .   .    .     .   .     .    .    .      . The car is red . </s>      `.` is -100

Each era of VILA found the words in its own way, and both are kept, as they differ where pieces of text melt together at
the seams. NVILA tokenises the conversation twice, the second time with a mark in place of every answer, and learns what
the second does not have (`llava/utils/tokenizer.py`, main branch). Before, answers were found by the lengths of what
stands before them (`llava/data/dataset.py`, branch vila1.5). A conversation in which the words
cannot be told for certain is refused: the reference trains on such a sample with an empty loss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from vila_jax.errors import PromptError
from vila_jax.text.messages import interleaved_text
from vila_jax.text.prompts import MediaForm, PromptForm
from vila_jax.text.styles import Style

IGNORED = -100
"""Target of a token that is not learned; the number is the reference's."""

SENTINEL = "<vila/sentinel>"

Tokens = Int32[np.ndarray, " T"]


def conversation_tokens(
    form: PromptForm, messages: Sequence[Any], style: Style | None, segments: Sequence[int] = ()
) -> tuple[Tokens, Tokens]:
    """Token ids of a finished conversation, and their targets (not shifted).

    Args:
      form: how the model wants its prompts written.
      messages: the conversation, which ends with an answer; pictures stand in it as `<image>` or as parts.
      style: how it is written; None for the checkpoint's own chat template.
      segments: number of visual segments of each picture, in order.

    Returns:
      `ids [T]` with one placeholder per visual segment, and `targets [T]`: the id, or `IGNORED`.

    Raises:
      PromptError: the messages are malformed, end with a question, or their answers cannot be found among the tokens.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise PromptError("the conversation does not end with an answer", where="messages")
    ids = form.encode(form.render(messages, style, add_generation_prompt=False), segments)
    find = _by_sentinel if isinstance(form, MediaForm) else _by_prefix
    learned = find(form, messages, style, segments, ids)
    if not learned.any():
        raise PromptError("no answer is left to learn", where="messages")
    array = np.asarray(ids, np.int32)
    return array, np.where(learned & (array != form.image_id), array, IGNORED).astype(np.int32)


def _by_sentinel(
    form: PromptForm, messages: Sequence[Any], style: Style | None, segments: Sequence[int], ids: list[int]
) -> np.ndarray:
    """Learns what the same conversation with marks for answers does not have."""
    marked = [m | {"content": SENTINEL} if m["role"] == "assistant" else m for m in messages]
    asked = _outside_answers(messages, form.tokenizer.image_token, segments)
    template = form.encode(form.render(marked, style, add_generation_prompt=False), asked)
    [sentinel] = form.tokenizer.encode(SENTINEL, add_special_tokens=False)
    for before in (0, 1):  # at the second try, an empty piece before the mark goes as well
        learned = _unmatched(ids, _without(template, sentinel, before))
        if learned is not None:
            return learned
    raise PromptError("the conversation does not follow its template once it is tokenised", where="messages")


def _outside_answers(messages: Sequence[Any], mark: str, segments: Sequence[int]) -> list[int]:
    """The segments of the pictures that do not stand in answers."""
    shown = [
        message["role"] != "assistant"
        for message in messages
        for _ in range(interleaved_text(message["content"], mark).count(mark))
    ]
    return [own for own, outside in zip(segments, shown, strict=True) if outside]


def _without(template: list[int], sentinel: int, before: int) -> list[int]:
    """The template without its marks, the end of the answer behind each, and `before` tokens before."""
    keep = np.ones(len(template), bool)
    for at in np.flatnonzero(np.asarray(template[:-1]) == sentinel):
        keep[max(0, at - before) : at + 2] = False
    return [token for token, kept in zip(template, keep, strict=True) if kept]


def _unmatched(ids: list[int], template: list[int]) -> np.ndarray | None:
    """Which ids are left over when the template is read along; None where the template is not read to its end."""
    learned, at = np.zeros(len(ids), bool), 0
    for index, token in enumerate(ids):
        if at < len(template) and token == template[at]:
            at += 1
        else:
            learned[index] = True
    return learned if at == len(template) else None


def _by_prefix(
    form: PromptForm, messages: Sequence[Any], style: Style | None, segments: Sequence[int], ids: list[int]
) -> np.ndarray:
    """Learns what the conversation up to an answer has more than the conversation that invites it."""
    learned = np.zeros(len(ids), bool)
    for turn in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        before = _encoded(form, messages[:turn], style, segments, go=True)
        behind = _encoded(form, messages[: turn + 1], style, segments, go=False)
        if ids[: len(before)] != before or ids[: len(behind)] != behind or len(behind) <= len(before):
            raise PromptError("an answer melts together with the text around it", where=f"messages[{turn}]")
        learned[len(before) : len(behind)] = True
    return learned


def _encoded(
    form: PromptForm, messages: Sequence[Any], style: Style | None, segments: Sequence[int], *, go: bool
) -> list[int]:
    text = form.render(messages, style, add_generation_prompt=go)
    return form.encode(text, segments[: text.count(form.tokenizer.image_token)])
