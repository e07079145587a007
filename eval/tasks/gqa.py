"""GQA: compositional questions about photos of Visual Genome, one answer each.

    testdev_balanced_questions.json    {"201307251": {"imageId": "n1", "question", "answer"}}
    images/n1.jpg

On the Hub questions and pictures are two configurations, `testdev_balanced_instructions` and `testdev_balanced_images`,
which are joined here.
"""

from collections.abc import Iterator
from pathlib import Path

from eval.tasks import prompts
from eval.tasks.files import ON_HUB, File, Row, Unreadable, find, hub_rows, load_json, picture
from eval.tasks.sample import Sample, Task

_PUBLISHED = f"https://cs.stanford.edu/people/dorarad/gqa/download.html and {ON_HUB}/GQA"


def _rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    questions = f"{split}_balanced_questions.json"
    path = find(folder, [questions, f"questions1.2/{questions}"])
    if path is not None:
        for number, row in load_json(path).items():
            yield {**row, "id": number, "image": File(folder, (f"images/{row['imageId']}.jpg",))}
        return
    photos: dict[str, Row] = {}
    for row in hub_rows(folder, (f"{split}_balanced_images/{split}",), [questions], _PUBLISHED):
        if isinstance(row, Unreadable):
            yield row
        else:
            photos[row["id"]] = row["image"]
    for row in hub_rows(folder, (f"{split}_balanced_instructions/{split}",), [questions], _PUBLISHED):
        yield row if isinstance(row, Unreadable) else {**row, "image": photos.get(row["imageId"])}


def _sample(row: Row, style: str) -> Sample:
    return Sample(
        id=str(row["id"]),
        cluster=str(row["imageId"]),
        pictures=(picture(row["image"]),),
        prompt=prompts.lines(row["question"], prompts.SHORT),
        references=(row["answer"],) if row.get("answer") else (),
        answer=row.get("answer") or "",
    )


GQA = Task(
    name="gqa",
    summary="compositional questions about photos, one answer",
    published=_PUBLISHED,
    metric="gqa_exact_match",
    variant="lmms_eval",
    splits=("testdev", "val", "test", "train"),
    max_new_tokens=prompts.same(128),
    rows=_rows,
    to_sample=_sample,
    demonstrated="train",
)
