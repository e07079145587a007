"""VILA's instruction sets: M3IT with pictures, and FLAN, whose samples are text alone.

    {"question": "<image>\\nWhat is it?", "answer": "A bus.", "image": ["/9j/4AAQ…", "coco/1.jpg"]}

One object a line, in one `.jsonl` file or a folder of shards. The reference keeps the same keys (`answer:` and `image:`
among them) in pickles, which are not read. A picture is in base64, or the path of a `.jpg`. FLAN's own `inputs` and
`targets` mean question and answer.

As in the reference (`LazyVFlanDataset` of `llava/data/dataset.py`) marks of pictures are taken out of the question, and
one for every picture, of at most eight, is put in front; a visual dialog, whose earlier turns are written into the last
question, becomes a conversation of several turns. A sample without pictures gets no blank one.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from train.data.readers.files import inside, shards
from train.data.readers.llava import MARK, messages_of
from train.data.records import BadSample, Conversation, Picture

MAX_PICTURES = 8

_KEYS = {"question": ("question", "inputs"), "answer": ("answer", "answer:", "targets"), "image": ("image", "image:")}
_DIALOG = "Image Descriptions"  # what the questions of M3IT's visual dialogs begin with


def read_vflan(path: Path, images: Path | None = None) -> Iterator[Conversation | BadSample]:
    """Conversations of a `.jsonl` file, or of all of them in a folder.

    Args:
      path: the file or folder.
      images: folder of the pictures that are paths; by default that of the files.

    Raises:
      ConfigError: there is no such file, or there are only pickles.
    """
    root = images or (path if path.is_dir() else path.parent)
    for file in shards(path, (".jsonl",)):
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{file.name} line {number}"
                try:
                    yield instruction(_parsed(line, where), root, where)
                except BadSample as error:
                    yield error


def instruction(sample: Mapping[str, Any], root: Path, where: str) -> Conversation:
    """One sample.

    Raises:
      BadSample: it does not ask or answer, or its pictures cannot be found or are too many.
    """
    question, answer = (_text(sample, field, where) for field in ("question", "answer"))
    pictures = _pictures(_value(sample, "image"), root, where)
    if _DIALOG in question:
        turns = _dialog(question, answer, where)
    else:
        for mark in (f"{MARK}\n", f"\n{MARK}", MARK):
            question = question.replace(mark, "")
        turns = [(f"{MARK}\n" * len(pictures) + question, answer)]
    spoken = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    return Conversation(str(sample.get("id", where)), messages_of(spoken, len(pictures), where), pictures)


def _dialog(question: str, answer: str, where: str) -> list[tuple[str, str]]:
    """The turns that are written into a question, and the last one."""
    *earlier, last = [turn.split("\nAnswer: ") for turn in question.split("\nQuestion: ")[1:]] or [[]]
    if len(last) != 1 or any(len(turn) != 2 for turn in earlier):
        raise BadSample("damaged record", "a visual dialog whose turns do not alternate", where)
    turns = [(asked, said) for asked, said in earlier] + [(last[0].replace("\n", ""), answer)]
    return [(f"{MARK}\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def _parsed(line: str, where: str) -> Mapping[str, Any]:
    try:
        sample = json.loads(line)
    except ValueError as error:
        raise BadSample("damaged record", f"not JSON: {error}", where) from error
    if not isinstance(sample, dict):
        raise BadSample("damaged record", f"expected an object, got {type(sample).__name__}", where)
    return sample


def _value(sample: Mapping[str, Any], field: str) -> Any:
    return next((sample[key] for key in _KEYS[field] if sample.get(key) is not None), None)


def _text(sample: Mapping[str, Any], field: str, where: str) -> str:
    value = _value(sample, field)
    if not isinstance(value, str):
        raise BadSample("damaged record", f"there is no text under {_KEYS[field][0]!r}", where)
    return value.rstrip()


def _pictures(value: Any, root: Path, where: str) -> tuple[Picture, ...]:
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise BadSample("damaged record", "pictures are neither paths nor base64", where)
    if len(values) > MAX_PICTURES:
        raise BadSample("wrong number of pictures", f"{len(values)}, of at most {MAX_PICTURES}", where)
    return tuple(_picture(one, root, where) for one in values)


def _picture(text: str, root: Path, where: str) -> Picture:
    if text.endswith(".jpg"):
        return str(inside(root, text, where))
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSample("corrupt picture", "it is neither the path of a .jpg nor base64", where) from error
