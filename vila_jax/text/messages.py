"""Conversations in the Hugging Face form, checked, and the images found in them.

[{"role": "system", "content": "Answer in one word."},
 {"role": "user", "content": [{"type": "image", "path": "cat.png"},
                              {"type": "text", "text": "What is this?"}]},
 {"role": "assistant", "content": "A cat."}]
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vila_jax.errors import PromptError

ROLES = ("system", "user", "assistant")
PART_TYPES = ("text", "image")
SOURCE_KEYS = ("image", "url", "path")

Message = Mapping[str, Any]


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
            fix='Use {"type": "text", "text": "..."} or {"type": "image", "path": "..."}; '
            f"an image's source is under one of {', '.join(SOURCE_KEYS)}, or passed separately.",
        )
    if kind == "text" and not isinstance(part.get("text"), str):
        raise PromptError('a text part must hold a string under "text"', where=where)


def _image_parts(messages: Any) -> list[Mapping[str, Any]]:
    contents = [message["content"] for message in validate(messages)]
    return [part for parts in contents if not isinstance(parts, str) for part in parts if part["type"] == "image"]


def _source(part: Mapping[str, Any]) -> Any:
    return next((part[key] for key in SOURCE_KEYS if part.get(key) is not None), None)


def collect_images(messages: Any) -> list[Any]:
    """The sources of the image parts, in order: whatever stands under `image`, `url` or `path`.

    Parts without a source stand for images that are passed separately, and are left out: see `fill_images`.

    Raises:
      PromptError: the conversation is not well formed.
    """
    return [source for source in map(_source, _image_parts(messages)) if source is not None]


def fill_images(messages: Any, images: Sequence[Any]) -> list[Any]:
    """One source per image of the conversation, in order.

    Args:
      messages: the conversation.
      images: the sources of the parts that name none, in order. A conversation that has no image part at all may
        hold its placeholders inside its texts instead; the images are then returned as they are.

    Raises:
      PromptError: the conversation is not well formed, or needs another number of separate images.
    """
    sources = [_source(part) for part in _image_parts(messages)]
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
    return [next(separate) if source is None else source for source in sources]


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
