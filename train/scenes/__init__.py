"""Drawn scenes as data sets of the standard road: record number `i` of a set is always the same, and never on disk.

scenes:captions    a picture and a sentence about everything in it
scenes:documents   sentences with several pictures between them
scenes:questions   a conversation of one or more questions about a picture
scenes:fewshot     examples of a task that nothing names, then one more: what is learned is to follow them
scenes:stories     sentences alone, before there is anything to see
scenes:text        instructions without pictures
"""

from collections.abc import Callable, Mapping
from typing import Any

import grain

from train.scenes.captions import caption, document, story
from train.scenes.conversations import conversation
from train.scenes.fewshot import fewshot
from train.scenes.instructions import instruction
from train.scenes.source import DrawnRecords, Make

_MAKERS: Mapping[str, Make] = {
    "scenes:captions": caption,
    "scenes:documents": document,
    "scenes:questions": conversation,
    "scenes:fewshot": fewshot,
    "scenes:stories": story,
    "scenes:text": instruction,
}


def _opener(name: str, make: Make) -> Callable[[], grain.MapDataset[Any]]:
    return lambda: grain.MapDataset.source(DrawnRecords(name, make))


DRAWN: Mapping[str, Callable[[], grain.MapDataset[Any]]] = {name: _opener(name, make) for name, make in _MAKERS.items()}
"""What opens each data set; its records are as they are, not encoded."""
