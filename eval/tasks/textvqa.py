"""TextVQA: questions about text in photos, ten human answers; with and without the words that a reader found.

    TextVQA_0.5.1_val.json               {"data": [{"question_id", "image_id", "question", "answers": [str]}]}
    TextVQA_Rosetta_OCR_v0.2_val.json    {"data": [{"image_id", "ocr_tokens": [str]}]}
    train_images/0a1b2c.jpg              of the training and the validation split

LLaVA-1.5 and VILA report numbers with these words in the prompt (58.2 for LLaVA-1.5-7B, about 46 without), so the two
are different tasks here.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from eval.tasks import prompts
from eval.tasks.files import ON_HUB, File, Row, Unreadable, find, fingerprint, hub_rows, load_json, need, picture
from eval.tasks.sample import Sample, Task
from eval.tasks.vqa import answers_of, most_common

_PUBLISHED = f"https://textvqa.org/dataset and {ON_HUB}/textvqa"
_HUB = {"val": ("validation",), "train": ("train",)}


def _rows(words: bool) -> Callable[[Path, str], Iterator[Row | Unreadable]]:
    def rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
        questions = f"TextVQA_0.5.1_{split}.json"
        path = find(folder, [questions])
        if path is None:
            yield from hub_rows(folder, _HUB[split], [questions], _PUBLISHED)
            return
        found: dict[str, list[str]] = {}
        if words:
            read = need(folder, [f"TextVQA_Rosetta_OCR_v0.2_{split}.json"], _PUBLISHED)
            found = {entry["image_id"]: entry["ocr_tokens"] for entry in load_json(read)["data"]}
        for row in load_json(path)["data"]:
            name = f"{row['image_id']}.jpg"
            image = File(folder, (f"train_images/{name}", name))
            yield {**row, "image": image, **({"ocr_tokens": found.get(row["image_id"], [])} if words else {})}

    return rows


def _sample(words: bool) -> Callable[[Row, str], Sample]:
    def sample(row: Row, style: str) -> Sample:
        shown, answers = picture(row["image"]), answers_of(row)
        seen = f"Reference OCR token: {', '.join(row['ocr_tokens'])}" if words else ""
        return Sample(
            id=str(row["question_id"]),
            cluster=str(row.get("image_id", fingerprint(shown))),
            pictures=(shown,),
            prompt=prompts.lines(row["question"], seen, prompts.SHORT),
            references=answers,
            answer=most_common(answers),
        )

    return sample


def _task(name: str, words: bool) -> Task:
    return Task(
        name=name,
        summary=f"questions about text in photos, {'with' if words else 'without'} OCR tokens in the prompt",
        published=_PUBLISHED,
        metric="textvqa_accuracy",
        variant="lmms_eval",
        splits=("val", "train"),
        max_new_tokens=prompts.same(128),
        rows=_rows(words),
        to_sample=_sample(words),
        demonstrated="train",
    )


TEXTVQA = _task("textvqa", words=False)
TEXTVQA_OCR = _task("textvqa_ocr", words=True)
