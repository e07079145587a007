"""Conversations in the Hugging Face form, checked, and the images and videos found in them.

[{"role": "system", "content": "Answer in one word."},
 {"role": "user", "content": [{"type": "image", "path": "cat.png"},
                              {"type": "text", "text": "What is this?"}]},
 {"role": "assistant", "content": "A cat."},
 {"role": "user", "content": [{"type": "video", "path": "dog.mp4"},
                              {"type": "text", "text": "And this?"}]}]
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vila_jax.errors import PromptError

ROLES = ("system", "user", "assistant")
MEDIA_KEYS = {"image": ("image", "url", "path"), "video": ("video", "url", "path")}
SOURCE_KEYS = tuple(dict.fromkeys(key for keys in MEDIA_KEYS.values() for key in keys))
PART_TYPES = ("text", *MEDIA_KEYS)

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class VideoSource:
    """Marks the source of a video among those of images.

    Attributes:
      source: a file, a folder of frames, or a list of the frames themselves.
      num_frames: how many frames are taken, evenly; None leaves it to the checkpoint.
    """

    source: Any
    num_frames: int | None = None


def validate(messages: Any) -> list[Message]:
    """Checks a conversation and returns it as a list.

    Raises:
      PromptError: no message, an unknown role or part type, or a message that says nothing.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(
            f"messages must be a list of messages, got {type(messages).__name__}",
            fix='Write [{"role": "user", "content": "..."}], or pass a plain text as `prompt`.',
        )
    if not messages:
        raise PromptError("the conversation holds no message", fix='Add {"role": "user", "content": "..."}.')
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    return list(messages)


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise PromptError('a message must be a mapping with the keys "role" and "content"', where=where)
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise PromptError(f"unknown role {role!r}", where=where, fix=f"Use one of {', '.join(ROLES)}.")
    if isinstance(content, str):
        # An empty system message is how a caller asks for no system prompt at all.
        if not content and role != "system":
            raise PromptError(f"the {role} message is empty", where=where, fix="Give it a text or an image.")
        return
    if isinstance(content, Mapping | bytes) or not isinstance(content, Sequence):
        raise PromptError(
            f"content must be a text or a list of parts, got {type(content).__name__}",
            where=where,
            fix='Write "content": "..." or "content": [{"type": "text", "text": "..."}].',
        )
    if not content:
        raise PromptError(f"the {role} message has no parts", where=where, fix="Give it a text or an image.")
    for index, part in enumerate(content):
        _check_part(part, f"{where}.content[{index}]")


def _check_part(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in PART_TYPES:
        raise PromptError(
            f"unknown part type {kind!r}" if isinstance(part, Mapping) else "a part must be a mapping",
            where=where,
            fix='Use {"type": "text", "text": "..."}, {"type": "image", "path": "..."} or the same with "video"; '
            f"an image's source is under one of {', '.join(MEDIA_KEYS['image'])}, or passed separately.",
        )
    if kind == "text" and not isinstance(part.get("text"), str):
        raise PromptError('a text part must hold a string under "text"', where=where)
    frames = part.get("num_frames")
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise PromptError(f'"num_frames" must be a whole number from 1, got {frames!r}', where=where)


def _media_parts(messages: Any) -> list[Mapping[str, Any]]:
    contents = [message["content"] for message in validate(messages)]
    return [part for parts in contents if not isinstance(parts, str) for part in parts if part["type"] != "text"]


def _source(part: Mapping[str, Any]) -> Any:
    return next((part[key] for key in MEDIA_KEYS[part["type"]] if part.get(key) is not None), None)


def _tagged(part: Mapping[str, Any], source: Any) -> Any:
    plain = part["type"] == "image" or isinstance(source, VideoSource)
    return source if plain else VideoSource(source, part.get("num_frames"))


def collect_images(messages: Any) -> list[Any]:
    """The sources of the image and video parts, in order: whatever stands under `image`, `video`, `url` or `path`.

    Parts without a source stand for images that are passed separately, and are left out: see `fill_images`.

    Raises:
      PromptError: the conversation is not well formed.
    """
    return [_tagged(part, _source(part)) for part in _media_parts(messages) if _source(part) is not None]


def fill_images(messages: Any, images: Sequence[Any]) -> list[Any]:
    """One source per image or video of the conversation, in order.

    Args:
      messages: the conversation.
      images: the sources of the parts that name none, in order. A conversation that has no image part at all may
        hold its placeholders inside its texts instead; the images are then returned as they are.

    Returns:
      The sources; those of videos as `VideoSource`.

    Raises:
      PromptError: the conversation is not well formed, or needs another number of separate images.
    """
    parts = _media_parts(messages)
    sources = [_source(part) for part in parts]
    missing = sum(source is None for source in sources)
    if not sources:
        return list(images)
    if missing != len(images):
        raise PromptError(
            f"{missing} image parts of the conversation name no source, and {len(images)} images were given for them",
            where="messages",
            fix="Pass one image per such part, or put the source into the part.",
        )
    separate = iter(images)
    given = [next(separate) if source is None else source for source in sources]
    return [_tagged(part, source) for part, source in zip(parts, given, strict=True)]


def has_videos(messages: Any) -> bool:
    """Whether a part of the conversation is a video.

    Raises:
      PromptError: the conversation is not well formed.
    """
    return any(part["type"] == "video" for part in _media_parts(messages))


def videos_as_images(messages: Any, frames: Sequence[int]) -> list[Message]:
    """The conversation with every video part replaced by one image part per frame.

    Args:
      messages: the conversation.
      frames: number of frames of each video part, in order.

    Raises:
      PromptError: the conversation is not well formed, or has another number of video parts.
    """
    found = sum(part["type"] == "video" for part in _media_parts(messages))
    if found != len(frames):
        raise PromptError(f"it has {found} video parts, but {len(frames)} videos were given", where="messages")
    counts = iter(frames)

    def as_images(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [{"type": "image"}] * next(counts) if part["type"] == "video" else [part]

    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [own for part in message["content"] for own in as_images(part)]}
        for message in messages
    ]


def flat_text(content: str | Sequence[Mapping[str, Any]], image: str) -> str:
    """A message as one text: `image` for every image part, all before the text, as LLaVA was trained.

    Args:
      content: a text, which is returned as it is, or checked parts; text parts are joined by one space.
      image: what stands for one image, e.g. `"<image>\\n"`.
    """
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content if part["type"] == "text"]
    return image * (len(content) - len(texts)) + " ".join(texts)


def interleaved_text(content: str | Sequence[Mapping[str, Any]], image: str, video: str = "") -> str:
    """A message as one text: its parts one after another, nothing between them, as VILA was trained.

    Args:
      content: a text, which is returned as it is, or checked parts.
      image: what stands for one image, e.g. `"<image>"`.
      video: what stands for one video.
    """
    if isinstance(content, str):
        return content
    marks = {"image": image, "video": video}
    return "".join(part["text"] if part["type"] == "text" else marks[part["type"]] for part in content)
