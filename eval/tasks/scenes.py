"""Questions about drawn scenes: the exam of `nano`, which needs no files. The folder is not looked at."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from PIL import Image

from eval.tasks import prompts
from eval.tasks.files import Row, Unreadable
from eval.tasks.sample import Sample, Task
from vila_jax.exam.items import exam
from vila_jax.scenes.world import Split

QUESTIONS = 1000
_LONGEST_ANSWER = 4  # tokens of `nano`: three digits and the end


def _rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    for number, item in enumerate(itertools.islice(exam(cast(Split, split)), QUESTIONS)):
        question = item.question
        image = Image.fromarray(item.scene.image)
        yield {
            "id": number,
            "question": question.text,
            "answer": question.answer,
            "kind": question.kind,
            "image": image,
        }


def _sample(row: Row, style: str) -> Sample:
    name = str(row["id"])
    extras = {"kind": row["kind"]}
    return Sample(name, name, (row["image"],), row["question"], (row["answer"],), row["answer"], extras)


SCENES = Task(
    name="scenes",
    summary="colours, shapes, places, digits and words in drawn scenes",
    published="vila_jax/scenes, which draws them",
    metric="exact_match",
    variant="vila_jax",
    splits=("test", "train"),
    max_new_tokens=prompts.same(_LONGEST_ANSWER),
    rows=_rows,
    to_sample=_sample,
    demonstrated="train",
)
