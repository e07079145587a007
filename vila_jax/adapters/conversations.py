"""What tasks of `lmms-eval` show and ask, as our conversations."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from PIL import Image

from vila_jax.errors import PromptError

MARK = "<image>"
"""Where a task's text wants a picture."""

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}

Conversation = tuple[list[dict[str, Any]], list[Any]]
"""Messages, and the pictures whose places are marked in their texts, if they are."""


def user_turn(context: str, visuals: Sequence[Any] | None) -> list[dict[str, Any]]:
    """One question about pictures and videos, which stand in front of it.

    Args:
      context: the question.
      visuals: what `doc_to_visual` gives: pictures, paths of pictures and videos; None or nothing for text alone.
    """
    shown = [_part(visual) for visual in visuals or () if visual is not None]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": context}]}]


def conversation(
    messages: Sequence[Mapping[str, Any]], image_token: str, *, system: str = "", num_frames: int | None = None
) -> Conversation:
    """A conversation as the model takes it.

    Args:
      messages: in the form of `doc_to_messages`, or of `user_turn`.
      image_token: what marks a picture in the model's texts.
      system: a system message in front, where there is none.
      num_frames: of videos; None leaves it to the checkpoint.

    Returns:
      The messages with their pictures. Texts may say by `<image>` where these stand; then the marks rule, and the
      picture parts in front of them are left out.

    Raises:
      PromptError: there are marks, but another number of pictures; or something is neither picture, video nor text.
    """
    turns = [{**message, "content": _parts(message["content"], num_frames)} for message in messages]
    if system and turns and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    parts = [part for turn in turns if not isinstance(turn["content"], str) for part in turn["content"]]
    texts = [turn["content"] for turn in turns if isinstance(turn["content"], str)]
    marks = sum(text.count(MARK) for text in (*texts, *(part["text"] for part in parts if part["type"] == "text")))
    if not marks:
        return turns, []
    pictures = [part["image"] for part in parts if part["type"] == "image"]
    if marks != len(pictures) or any(part["type"] == "video" for part in parts):
        raise PromptError(
            f"its text has {marks} {MARK} marks, and {len(pictures)} pictures are shown",
            where="document",
            fix="Mark every picture, or none.",
        )
    return [_marked(turn, image_token) for turn in turns], pictures


def _marked(turn: Mapping[str, Any], image_token: str) -> dict[str, Any]:
    """The turn as one text, its pictures only marked."""
    content = turn["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    return {**turn, "content": content.replace(MARK, image_token)}


def _parts(content: Any, num_frames: int | None) -> Any:
    if isinstance(content, str):
        return content
    return [part if part["type"] == "text" else _part(_shown(part), part["type"], num_frames) for part in content]


def _shown(part: Mapping[str, Any]) -> Any:
    return next((part[key] for key in ("url", "path", "image", "video") if key in part), None)


def _part(visual: Any, kind: str | None = None, num_frames: int | None = None) -> dict[str, Any]:
    """A picture or a video as a part of a message."""
    if kind is None:
        path = isinstance(visual, str) and PurePath(visual).suffix.lower() not in _PICTURES
        kind = "video" if path else "image"
    if kind == "image" and isinstance(visual, Image.Image | str):
        return {"type": "image", "image": visual}
    if kind == "video" and isinstance(visual, str):
        frames = {} if num_frames is None else {"num_frames": num_frames}
        return {"type": "video", "video": visual, **frames}
    raise PromptError(
        f"a {kind} given as {type(visual).__name__} is neither a picture nor the path of a video",
        where="document",
        fix="Choose a task of pictures or videos.",
    )
