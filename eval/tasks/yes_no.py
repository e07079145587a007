"""POPE and MME: questions that are answered with yes or no.

    coco_pope_random.json              one object in each line: {"question_id", "image", "text", "label"}; and popular,
    val2014/COCO_val2014_0....jpg      adversarial

    color/000000012120.txt, .jpg                   two lines "question<TAB>Yes"
    landmark/questions_answers_YN/x.txt,           of the five categories with photos from the web
    landmark/images/x.jpg

MME's categories lie in the folder or in its `MME_Benchmark_release_version`. Its questions end with "Please answer yes
or no.", which LLaVA and VILA replace.
"""

from collections.abc import Iterator
from pathlib import Path

from eval.metrics.mme import COGNITION, PERCEPTION
from eval.tasks import prompts
from eval.tasks.files import ON_HUB, File, Row, Unreadable, find, fingerprint, hub_rows, json_lines, missing, picture
from eval.tasks.sample import Sample, Task

_POPE = f"https://github.com/AoiDragon/POPE and {ON_HUB}/POPE"
_MME = f"https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models and {ON_HUB}/MME"
_SETS = ("random", "popular", "adversarial")
_ENDING = "Please answer yes or no."
_SUFFIXES = (".jpg", ".png", ".jpeg")


def _pope_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    wanted = _SETS if split == "all" else (split,)
    local = {name: f"coco_pope_{name}.json" for name in wanted}
    paths = {name: find(folder, [file, f"coco/{file}"]) for name, file in local.items()}
    if not any(paths.values()):
        apart = all(any(folder.rglob(f"{name}-*.parquet")) for name in wanted)  # the configuration `Full`
        for name in wanted if apart else ("test",):
            for row in hub_rows(folder, (name,), list(local.values()), _POPE):
                if isinstance(row, Unreadable) or row.get("category") in wanted:
                    yield row
        return
    for name, path in paths.items():
        if path is None:
            raise missing(folder, [local[name]], _POPE)
        for row in json_lines(path):
            if isinstance(row, Unreadable):
                yield row
            else:
                photo = str(row.get("image"))
                yield {
                    "question_id": f"{name}/{row.get('question_id')}",
                    "question": row.get("text"),
                    "answer": row.get("label"),
                    "category": name,
                    "image_source": photo,
                    "image": File(folder, (f"val2014/{photo}", photo)),
                }


def _pope(row: Row, style: str) -> Sample:
    shown, label = picture(row["image"]), row["answer"].lower().strip()
    return Sample(
        id=_apart(str(row["question_id"]), row["category"]),
        cluster=str(row.get("image_source", fingerprint(shown))),
        pictures=(shown,),
        prompt=prompts.lines(row["question"], prompts.SHORT),
        references=(label,),
        answer=label,
        extras={"category": row["category"]},
    )


def _apart(number: str, category: str) -> str:
    """The three sets number their questions alike."""
    return number if number.startswith(f"{category}/") else f"{category}/{number}"


def _mme_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    root = find(folder, ["MME_Benchmark_release_version", "MME_Benchmark"]) or folder
    categories = (*PERCEPTION, *COGNITION)
    if not any((root / name).is_dir() for name in categories):
        yield from hub_rows(folder, ("test",), [f"{PERCEPTION[0]}/*.txt"], _MME)
        return
    for category in categories:
        files = sorted((root / category).glob("*.txt")) or sorted((root / category).glob("questions_answers_YN/*.txt"))
        if not files:
            yield Unreadable(category, f"there are no questions in {category}, so the category is missing")
        for path in files:
            names = (f"{folder_}{path.stem}{s}" for folder_ in ("", "images/") for s in _SUFFIXES)
            yield from _mme_file(path, category, File(root / category, tuple(names)))


def _mme_file(path: Path, category: str, image: File) -> Iterator[Row | Unreadable]:
    asked = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for line in asked:
        question, tab, answer = line.rpartition("\t")
        if tab:
            yield {
                "question_id": f"{category}/{path.stem}",
                "question": question,
                "answer": answer,
                "category": category,
                "image": image,
            }
        else:
            yield Unreadable(f"{category}/{path.name}", f"the line {line[:40]!r} has no answer behind a tab")


def _mme(row: Row, style: str) -> Sample:
    question = row["question"].replace(_ENDING, "").strip()
    place = str(row["question_id"])
    return Sample(
        id=f"{place}: {question}",
        cluster=f"{row['category']}/{place}",
        pictures=(picture(row["image"]),),
        prompt=prompts.lines(question, prompts.SHORT),
        references=(row["answer"].strip(),),
        answer=row["answer"].strip(),
        extras={"category": row["category"], "question_id": place},
    )


POPE = Task(
    name="pope",
    summary="is there such a thing in the photo? in three sets",
    published=_POPE,
    metric="pope",
    variant="llava",
    splits=("all", *_SETS),
    max_new_tokens=prompts.same(128),
    rows=_pope_rows,
    to_sample=_pope,
)
MME = Task(
    name="mme",
    summary="two questions with yes or no about every picture, in fourteen categories",
    published=_MME,
    metric="mme",
    variant="lmms_eval",
    splits=("test",),
    max_new_tokens=prompts.same(128),
    rows=_mme_rows,
    to_sample=_mme,
)
