"""VQAv2 and OK-VQA: open questions about photos of COCO, with ten human answers each.

    v2_OpenEnded_mscoco_val2014_questions.json    {"questions": [{"question_id", "image_id", "question"}]}
    v2_mscoco_val2014_annotations.json            {"annotations": [{"question_id", "answers": [{"answer"}]}]}
    val2014/COCO_val2014_000000000042.jpg

OK-VQA's files have the same form and no `v2_`. Answers of the test splits are not published.
"""

import collections
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eval.tasks import prompts
from eval.tasks.files import ON_HUB, File, Row, Unreadable, find, fingerprint, hub_rows, load_json, need, picture
from eval.tasks.sample import Sample, Task

_VQA = f"https://visualqa.org/download.html and {ON_HUB}/VQAv2"
_OKVQA = f"https://okvqa.allenai.org/download.html and {ON_HUB}/OK-VQA"
_YEARS = {"val": "val2014", "train": "train2014", "testdev": "test-dev2015", "test": "test2015"}
_PHOTOS = {"val": "val2014", "train": "train2014", "testdev": "test2015", "test": "test2015"}
_ANSWERED = ("val", "train")
_HUB = {"val": ("validation", "val2014"), "train": ("train",), "testdev": ("testdev",), "test": ("test",)}


def _rows(prefix: str, published: str) -> Callable[[Path, str], Iterator[Row | Unreadable]]:
    def rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
        questions = f"{prefix}OpenEnded_mscoco_{_YEARS[split]}_questions.json"
        path = find(folder, [questions])
        if path is None:
            yield from hub_rows(folder, _HUB[split], [questions], published)
            return
        answers: dict[Any, Any] = {}
        if split in _ANSWERED:
            notes = need(folder, [f"{prefix}mscoco_{_YEARS[split]}_annotations.json"], published)
            answers = {note["question_id"]: note["answers"] for note in load_json(notes)["annotations"]}
        photos = _PHOTOS[split]
        for row in load_json(path)["questions"]:
            name = f"COCO_{photos}_{int(row['image_id']):012d}.jpg"
            image = File(folder, (f"{photos}/{name}", name))
            yield {**row, "image": image, "answers": answers.get(row["question_id"], [])}

    return rows


def answers_of(row: Row) -> tuple[str, ...]:
    """The human answers, which some files keep as objects."""
    return tuple(own["answer"] if isinstance(own, dict) else own for own in row.get("answers") or ())


def most_common(answers: tuple[str, ...]) -> str:
    """What most people said, the first among equals; empty without answers."""
    return collections.Counter(answers).most_common(1)[0][0] if answers else ""


def _sample(row: Row, style: str) -> Sample:
    shown, answers = picture(row["image"]), answers_of(row)
    return Sample(
        id=str(row["question_id"]),
        cluster=str(row.get("image_id", fingerprint(shown))),
        pictures=(shown,),
        prompt=prompts.lines(row["question"], prompts.SHORT),
        references=answers,
        answer=most_common(answers),
        extras={"question_id": row["question_id"]},
    )


VQAV2 = Task(
    name="vqav2",
    summary="open questions about photos, ten human answers",
    published=_VQA,
    metric="vqa_accuracy",
    variant="lmms_eval",
    splits=("val", "testdev", "test", "train"),
    max_new_tokens=prompts.same(128),
    rows=_rows("v2_", _VQA),
    to_sample=_sample,
    demonstrated="train",
)
OKVQA = Task(
    name="okvqa",
    summary="questions about photos that need outside knowledge, ten human answers",
    published=_OKVQA,
    metric="textvqa_accuracy",
    variant="lmms_eval",
    splits=("val", "train"),
    max_new_tokens=prompts.same(128),
    rows=_rows("", _OKVQA),
    to_sample=_sample,
    demonstrated="train",
)
