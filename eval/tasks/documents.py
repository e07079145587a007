"""DocVQA, ChartQA and OCRBench: pictures that are mostly text.

    val_v1.0.json, documents/x.png      {"data": [{"questionId", "docId", "question", "image", "answers"}]}
    test/test_human.json, test/png/x    [{"imgname", "query", "label"}]; and test_augmented.json
    OCRBench.json, OCRBench_Images/x    [{"image_path", "question", "answers", "dataset_name", "type"}]

LLaVA's authors ran none of them: the style `llava` is what lmms_eval asks LLaVA. VILA asked the bare question of charts
and documents (`llava/eval/evaluate_vqa.py`) and let the model say 100 tokens.
"""

from collections.abc import Iterator
from pathlib import Path

from eval.tasks import prompts
from eval.tasks.files import ON_HUB, File, Row, Unreadable, find, fingerprint, hub_rows, load_json, picture
from eval.tasks.sample import LLAVA, VILA, Sample, Task

_DOCVQA = f"https://www.docvqa.org/datasets and {ON_HUB}/DocVQA"
_CHARTQA = f"https://github.com/vis-nlp/ChartQA and {ON_HUB}/ChartQA"
_OCRBENCH = "https://github.com/Yuliang-Liu/MultimodalOCR and https://huggingface.co/datasets/echo840/OCRBench"
_ONE_WORD = "Answer the question with a single word."


def _docvqa_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    names = [f"{split}_v1.0.json", f"{split}_v1.0_withQT.json"]
    path = find(folder, names)
    if path is None:
        hub = {"val": "validation"}.get(split, split)
        yield from hub_rows(folder, (f"DocVQA/{hub}", hub), names, _DOCVQA)
        return
    for row in load_json(path)["data"]:
        yield {**row, "image": File(folder, (row["image"], f"{split}/{row['image']}"))}


def _docvqa(row: Row, style: str) -> Sample:
    shown, answers = picture(row["image"]), tuple(row.get("answers") or ())
    return Sample(
        id=str(row["questionId"]),
        cluster=str(row.get("docId", fingerprint(shown))),
        pictures=(shown,),
        prompt=prompts.lines(row["question"], prompts.SHORT if style == LLAVA else ""),
        references=answers,
        answer=answers[0] if answers else "",
        extras={"questionId": row["questionId"]},
    )


def _chartqa_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    local = [f"{split}/{split}_{kind}.json" for kind in ("human", "augmented")]
    paths = [find(folder, [name, f"ChartQA Dataset/{name}"]) for name in local]
    if not any(paths):
        yield from hub_rows(folder, (split,), local, _CHARTQA)
        return
    for name, path in zip(local, paths, strict=True):
        if path is None:
            yield Unreadable(name, "there is no such file, so half of the questions are missing")
            continue
        kind = path.stem.rpartition("_")[2]
        for number, row in enumerate(load_json(path)):
            image = File(path.parent, (f"png/{row['imgname']}",))
            yield {
                "id": f"{kind}/{number}",
                "question": row["query"],
                "answer": row["label"],
                "type": kind,
                "image": image,
            }


def _chartqa(row: Row, style: str) -> Sample:
    shown, answer = picture(row["image"]), row["answer"]
    references = (answer,) if isinstance(answer, str) else tuple(answer)
    kind = str(row["type"]).partition("_")[0]  # the Hub has human_test
    name = fingerprint(shown)
    return Sample(
        id=str(row.get("id", f"{kind}/{name}/{row['question']}")),
        cluster=name,
        pictures=(shown,),
        prompt=prompts.lines(row["question"], _ONE_WORD if style == LLAVA else ""),
        references=references,
        answer=references[0],
        extras={"type": kind},
    )


def _ocrbench_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    names = ["OCRBench.json", "OCRBench/OCRBench.json"]
    path = find(folder, names)
    if path is None:
        for number, row in enumerate(hub_rows(folder, ("test",), names, _OCRBENCH)):
            yield {"id": number, **row} if isinstance(row, dict) else row
        return
    for number, row in enumerate(load_json(path)):
        yield {
            "id": number,
            "question": row["question"],
            "answer": row["answers"],
            "dataset": row["dataset_name"],
            "question_type": row["type"],
            "image": File(folder, (f"OCRBench_Images/{row['image_path']}", row["image_path"])),
        }


def _ocrbench(row: Row, style: str) -> Sample:
    shown, answer = picture(row["image"]), row["answer"]
    references = (answer,) if isinstance(answer, str) else tuple(map(str, answer))
    return Sample(
        id=str(row["id"]),
        cluster=fingerprint(shown),
        pictures=(shown,),
        prompt=row["question"].strip(),
        references=references,
        answer=references[0],
        extras={"dataset": row["dataset"], "question_type": row["question_type"]},
    )


DOCVQA = Task(
    name="docvqa",
    summary="questions about scanned documents",
    published=_DOCVQA,
    metric="anls",
    variant="lmms_eval",
    splits=("val", "test", "train"),
    max_new_tokens={LLAVA: 32, VILA: 100},
    rows=_docvqa_rows,
    to_sample=_docvqa,
    demonstrated="train",
)
CHARTQA = Task(
    name="chartqa",
    summary="questions about charts, by people and by a program",
    published=_CHARTQA,
    metric="relaxed_accuracy",
    variant="lmms_eval",
    splits=("test", "val", "train"),
    max_new_tokens={LLAVA: 16, VILA: 100},
    rows=_chartqa_rows,
    to_sample=_chartqa,
    demonstrated="train",
)
OCRBENCH = Task(
    name="ocrbench",
    summary="reading text, in ten kinds of pictures",
    published=_OCRBENCH,
    metric="ocrbench",
    variant="lmms_eval",
    splits=("test",),
    max_new_tokens=prompts.same(128),
    rows=_ocrbench_rows,
    to_sample=_ocrbench,
)
