"""LLaVA's conversation JSON: the 558K of alignment, the 665K of instruction tuning, and text-only sets in that form.

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A bus."}]}]

`image` may be absent (ShareGPT, FLAN), a name, or a list of names. A `.jsonl` file has one sample per line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.data.readers.files import inside
from train.data.records import BadSample, Conversation
from vila_jax.errors import ConfigError

MARK = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_llava(path: Path, images: Path | None = None) -> Iterator[Conversation | BadSample]:
    """Conversations of a JSON or JSON-lines file.

    Args:
      path: the file.
      images: folder of the pictures; by default the folder of the file.

    Raises:
      ConfigError: the file is missing, or is no list of samples.
    """
    root = path.parent if images is None else images
    for index, sample in enumerate(_samples(path)):
        try:
            if isinstance(sample, BadSample):
                raise sample
            yield conversation(sample, root, f"{path.name}[{index}]")
        except BadSample as error:
            yield error


def conversation(sample: Any, root: Path, where: str) -> Conversation:
    """One sample.

    Raises:
      BadSample: it has no turns, an unknown speaker, or another number of pictures than of marks.
    """
    if not isinstance(sample, dict):
        raise BadSample("damaged record", f"expected an object, got {type(sample).__name__}", where)
    where = f"{where} id {sample['id']}" if "id" in sample else where
    names = sample.get("image") or []
    names = [names] if isinstance(names, str) else names
    messages = messages_of(sample.get("conversations"), len(names), where)
    pictures = tuple(str(inside(root, str(name), where)) for name in names)
    return Conversation(str(sample.get("id", where)), messages, pictures)


def messages_of(turns: Any, pictures: int, where: str) -> tuple[dict[str, str], ...]:
    """The messages of turns such as `{"from": "human", "value": "What is it?"}`.

    Args:
      pictures: how many are shown; the reference puts forgotten ones in front, and so does this.

    Raises:
      BadSample: nobody asks or answers, an unknown speaker, or another number of pictures than of marks.
    """
    if not isinstance(turns, list) or not turns:
        raise BadSample("empty conversation", "there are no `conversations`", where)
    messages = tuple(_message(turn, where) for turn in turns)
    if messages[0]["role"] == "assistant":  # some ShareGPT samples begin in the middle
        messages = messages[1:]
    if len(messages) < 2:
        raise BadSample("empty conversation", "nobody answers", where)
    marks = sum(message["content"].count(MARK) for message in messages)
    if pictures and not marks:
        return ({**messages[0], "content": MARK * pictures + "\n" + messages[0]["content"]}, *messages[1:])
    if marks != pictures:
        raise BadSample("wrong number of pictures", f"{marks} marks, but {pictures} pictures", where)
    return messages


def _message(turn: Any, where: str) -> dict[str, str]:
    role = ROLES.get(str(turn.get("from", turn.get("role")))) if isinstance(turn, dict) else None
    value = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if role is None or not isinstance(value, str):
        raise BadSample("damaged record", f"not a turn: {str(turn)[:80]}", where)
    if not value.strip():
        raise BadSample("empty conversation", "a turn says nothing", where)
    return {"role": role, "content": value}


def _samples(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ConfigError("there is no such file", where=str(path), fix="Check the path of the data set.")
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    yield BadSample("damaged record", f"not JSON: {error}", f"{path.name} line {number}")
        return
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"it is not JSON: {error}", where=str(path), fix="Download it again.") from error
    if not isinstance(samples, list):
        raise ConfigError("it is not a list of samples", where=str(path), fix="Expected LLaVA's conversation form.")
    yield from samples
