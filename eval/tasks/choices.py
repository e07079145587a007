"""MMBench and ScienceQA: questions with options.

    mmbench_dev_20230712.tsv     index, question, hint, A, B, C, D, answer, category, l2-category, image (base64)
    problems.json                {"4": {"question", "choices", "answer": 0, "hint", "image": "image.png" or null}}
    pid_splits.json              {"test": ["4"]}
    test/4/image.png

MMBench's rows hold every question once for each order of its options; to save space an image may be the index of the
row that has it.
"""

import base64
import binascii
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from eval.tasks import prompts
from eval.tasks.files import (
    ON_HUB,
    BadRow,
    File,
    Row,
    Unreadable,
    find,
    fingerprint,
    hub_rows,
    load_json,
    need,
    picture,
)
from eval.tasks.sample import Sample, Task

_MMBENCH = f"https://github.com/open-compass/MMBench and {ON_HUB}/MMBench"
_SQA = f"https://github.com/lupantech/ScienceQA and {ON_HUB}/ScienceQA"
_TSV = {
    "dev": ["mmbench_dev_20230712.tsv", "mmbench_dev_en_*.tsv", "MMBench_DEV_EN*.tsv"],
    "dev_cn": ["mmbench_dev_cn_*.tsv", "MMBench_DEV_CN*.tsv"],
    "test": ["mmbench_test_*.tsv", "MMBench_TEST_EN*.tsv"],
}
_HUB = {"dev": ("en/dev", "dev"), "dev_cn": ("cn/dev",), "test": ("en/test", "test")}
_LONGEST_INDEX = 64  # characters; a shorter image names the row that has it


def _mmbench_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    path = find(folder, _TSV[split])
    found = hub_rows(folder, _HUB[split], _TSV[split], _MMBENCH) if path is None else _table(path)
    for row in found:
        yield row if isinstance(row, Unreadable) else {**row, "language": "cn" if split == "dev_cn" else "en"}


def _table(path: Path) -> Iterator[Row | Unreadable]:
    csv.field_size_limit(sys.maxsize)  # pictures are longer than what Python expects of a field
    images: dict[str, str] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), start=2):
            if not (row.get("index") or "").isdecimal():
                yield Unreadable(f"{path.name} line {number}", "it does not begin with an index")
                continue
            image = row.get("image") or ""
            if len(image) > _LONGEST_INDEX:
                images[row["index"]] = image
            yield {**row, "image": _decoded(images.get(image, image))}


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if len(text) > _LONGEST_INDEX else None
    except binascii.Error:
        return None


def _said(value: object) -> str:
    """A field of a table, empty where it holds the `nan` of an empty cell."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("nan", "none") else text


def _mmbench(row: Row, style: str) -> Sample:
    choices = {letter: _said(row[letter]) for letter in "ABCD" if _said(row.get(letter))}
    if not choices:
        raise BadRow("there are no options")
    index, answer, shown = int(row["index"]), _said(row.get("answer")), picture(row["image"])
    question = prompts.lines(_said(row.get("hint")), row["question"], prompts.options(choices))
    groups = {"category": row.get("category"), "l2-category": row.get("l2-category", row.get("L2-category"))}
    return Sample(
        id=str(index),
        cluster=fingerprint(shown),  # several questions may show one picture
        pictures=(shown,),
        prompt=prompts.lines(question, prompts.LETTER_CN if row["language"] == "cn" else prompts.LETTER),
        references=(answer,) if answer else (),
        answer=answer,
        extras={"index": index, "choices": choices, "question": row["question"], **groups},
    )


def _scienceqa_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    path = find(folder, ["problems.json"])
    if path is None:
        hub = {"val": "validation"}.get(split, split)
        splits = (f"ScienceQA-IMG/{hub}", hub)
        for number, row in enumerate(hub_rows(folder, splits, ["problems.json"], _SQA)):
            yield {"id": number, **row} if isinstance(row, dict) else row
        return
    problems = load_json(path)
    for number in load_json(need(folder, ["pid_splits.json"], _SQA))[split]:
        row = problems[number]
        if row.get("image"):
            stored = f"{split}/{number}/{row['image']}"
            yield {**row, "id": number, "image": File(folder, (stored, f"images/{stored}"))}


def _scienceqa(row: Row, style: str) -> Sample:
    shown = picture(row["image"])
    choices = dict(zip(prompts.LETTERS, row["choices"], strict=False))
    letter = prompts.LETTERS[row["answer"]]
    hint = f"Context: {row['hint']}" if row.get("hint") else ""
    return Sample(
        id=str(row["id"]),
        cluster=fingerprint(shown) if isinstance(shown, bytes) else str(row["id"]),
        pictures=(shown,),
        prompt=prompts.lines(hint, row["question"], prompts.options(choices), prompts.LETTER),
        references=(letter,),
        answer=letter,
        extras={"choices": tuple(row["choices"])},
    )


MMBENCH = Task(
    name="mmbench",
    summary="questions with options in every order, about twenty abilities",
    published=_MMBENCH,
    metric="mmbench",
    variant="vlmevalkit",
    splits=("dev", "dev_cn", "test"),
    max_new_tokens=prompts.same(1024),
    rows=_mmbench_rows,
    to_sample=_mmbench,
)
SCIENCEQA = Task(
    name="scienceqa_img",
    summary="school questions with options and a picture",
    published=_SQA,
    metric="scienceqa",
    variant="llava",
    splits=("test", "val", "train"),
    max_new_tokens=prompts.same(1024),
    rows=_scienceqa_rows,
    to_sample=_scienceqa,
    demonstrated="train",
)
