"""MM-Vet: open questions about pictures of the web, which a language model judges.

mm-vet.json        {"v1_0": {"question", "imagename": "v1_0.png", "answer": "a<AND>b", "capability": ["rec"]}}
images/v1_0.png
"""

from collections.abc import Iterator
from pathlib import Path

from eval.tasks import prompts
from eval.tasks.files import ON_HUB, File, Row, Unreadable, find, fingerprint, hub_rows, load_json, picture
from eval.tasks.sample import Sample, Task

_PUBLISHED = f"https://github.com/yuweihao/MM-Vet and {ON_HUB}/MMVet"


def _rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    names = ["mm-vet.json", "mm-vet/mm-vet.json"]
    path = find(folder, names)
    if path is None:
        yield from hub_rows(folder, ("test",), names, _PUBLISHED)
        return
    for number, row in load_json(path).items():
        yield {**row, "question_id": number, "image": File(path.parent, (f"images/{row.get('imagename')}",))}


def _sample(row: Row, style: str) -> Sample:
    shown, needed = picture(row["image"]), row["capability"]
    return Sample(
        id=str(row["question_id"]),
        cluster=str(row.get("imagename", fingerprint(shown))),
        pictures=(shown,),
        prompt=row["question"],
        references=(row["answer"],),
        answer=row["answer"],
        extras={"capability": tuple(needed.split(",") if isinstance(needed, str) else needed), "judged": None},
    )


MMVET = Task(
    name="mmvet",
    summary="open questions that a language model judges",
    published=_PUBLISHED,
    metric="mmvet",
    variant="lmms_eval",
    splits=("test",),
    max_new_tokens=prompts.same(1024),
    rows=_rows,
    to_sample=_sample,
)
