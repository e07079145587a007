"""Small folders in the forms in which benchmarks are published, with real pictures in them."""

import base64
import io
import json
from pathlib import Path

import skimage
from PIL import Image

_DATA = Path(skimage.__file__).parent / "data"  # by path: other names of `skimage.data` are fetched over the network
PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")


def photo(which: int = 0, form: str = "JPEG") -> bytes:
    """The bytes of a small real photo."""
    with Image.open(_DATA / PHOTOS[which]) as opened:
        small = opened.convert("RGB").resize((48, 32))
    out = io.BytesIO()
    small.save(out, form)
    return out.getvalue()


def store(path: Path, which: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo(which))


def dump(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(pyarrow.Table.from_pylist(rows), path)


def on_hub(which: int = 0) -> dict:
    """A picture as the Hub's data sets hold it."""
    return {"bytes": photo(which), "path": PHOTOS[which]}


TEN = ["a cat"] * 6 + ["cat"] * 4


def vqa(folder: Path, prefix: str = "v2_", year: str = "val2014", photos=(42, 73)) -> None:
    asked = [{"question_id": 10 * n, "image_id": n, "question": f"What is in photo {n}?"} for n in photos]
    dump(folder / f"{prefix}OpenEnded_mscoco_{year}_questions.json", {"questions": asked})
    answers = [{"answer": text, "answer_id": n, "answer_confidence": "yes"} for n, text in enumerate(TEN, start=1)]
    notes = [{"question_id": 10 * n, "image_id": n, "answers": answers} for n in photos]
    dump(folder / f"{prefix}mscoco_{year}_annotations.json", {"annotations": notes})
    for place, n in enumerate(photos):
        store(folder / year / f"COCO_{year}_{n:012d}.jpg", place % 4)


def gqa(folder: Path) -> None:
    row = {"imageId": "n7", "question": "Is the cat left of the cup?", "answer": "no", "isBalanced": True}
    dump(folder / "testdev_balanced_questions.json", {"201": row})
    store(folder / "images" / "n7.jpg")


def textvqa(folder: Path) -> None:
    row = {"question_id": 34602, "image_id": "003a", "question": "what does it say?", "answers": TEN}
    dump(folder / "TextVQA_0.5.1_val.json", {"data": [row]})
    dump(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [{"image_id": "003a", "ocr_tokens": ["STOP", "4"]}]})
    store(folder / "train_images" / "003a.jpg")


def mmbench(folder: Path) -> None:
    image = base64.b64encode(photo()).decode()
    rows = [
        ["7", "Which animal?", "", "cat", "dog", "", "", "A", "object", "perception", image],
        ["1000007", "Which animal?", "Look.", "dog", "cat", "nan", "nan", "B", "object", "perception", "7"],
        ["no index", "", "", "", "", "", "", "", "", "", ""],
    ]
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image"]
    text = "\n".join("\t".join(row) for row in [head, *rows])
    (folder / "mmbench_dev_20230712.tsv").write_text(text + "\n", encoding="utf-8")


def mmvet(folder: Path) -> None:
    row = {"question": "What is x?", "imagename": "v1_0.png", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    dump(folder / "mm-vet.json", {"v1_0": row})
    store(folder / "images" / "v1_0.png")


def scienceqa(folder: Path) -> None:
    row = {
        "question": "Which is north?",
        "choices": ["up", "down"],
        "answer": 1,
        "hint": "A map.",
        "image": "image.png",
    }
    dump(folder / "problems.json", {"4": row, "5": {**row, "image": None}, "6": row})
    dump(folder / "pid_splits.json", {"test": ["4", "5"], "train": ["6"]})
    store(folder / "test" / "4" / "image.png")
    store(folder / "train" / "6" / "image.png", 1)


def pope(folder: Path) -> None:
    for name in ("random", "popular", "adversarial"):
        row = {"question_id": 1, "image": "COCO_val2014_000000000042.jpg", "text": "Is there a cat?", "label": "yes"}
        (folder / f"coco_pope_{name}.json").write_text(f"{json.dumps(row)}\n", encoding="utf-8")
    store(folder / "val2014" / "COCO_val2014_000000000042.jpg")


def mme(folder: Path) -> None:
    root = folder / "MME_Benchmark_release_version"
    lines = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    for questions, image in (
        ("color/0001.txt", "color/0001.jpg"),
        ("landmark/questions_answers_YN/x.txt", "landmark/images/x.jpg"),
    ):
        (root / questions).parent.mkdir(parents=True)
        (root / questions).write_text(lines, encoding="utf-8")
        store(root / image)


def docvqa(folder: Path) -> None:
    row = {
        "questionId": 337,
        "docId": 279,
        "question": "Who?",
        "image": "documents/x_1.png",
        "answers": ["J. Doe"],
    }
    dump(folder / "val_v1.0.json", {"dataset_split": "val", "data": [row]})
    store(folder / "documents" / "x_1.png")


def chartqa(folder: Path) -> None:
    dump(folder / "test" / "test_human.json", [{"imgname": "1.png", "query": "How many?", "label": "14"}])
    dump(folder / "test" / "test_augmented.json", [{"imgname": "1.png", "query": "Which year?", "label": "1999"}])
    store(folder / "test" / "png" / "1.png")


def ocrbench(folder: Path) -> None:
    row = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "question": "what is written in the image?"}
    dump(folder / "OCRBench.json", [{**row, "answers": "CENTRE", "image_path": "IIIT5K/1.png"}])
    store(folder / "OCRBench_Images" / "IIIT5K" / "1.png")


def karpathy(folder: Path, name: str, photos: str, extra: dict) -> None:
    images = [
        {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": f"photo {n} {i}"} for i in range(5)], **extra}
        for n, split in enumerate(("train", "restval", "test"))
    ]
    dump(folder / f"dataset_{name}.json", {"images": images})
    for n in range(3):
        store(folder / photos / f"{n}.jpg", n)


def flickr8k(folder: Path) -> None:
    lines = [f"{n}_x.jpg#{i}\tphoto {n} {i} ." for n in range(2) for i in range(5)]
    texts = folder / "Flickr8k_text"
    texts.mkdir(parents=True)
    (texts / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (texts / "Flickr_8k.testImages.txt").write_text("1_x.jpg\n0_x.jpg\n9_x.jpg\n", encoding="utf-8")
    for n in range(2):
        store(folder / "Flickr8k_Dataset" / "Flicker8k_Dataset" / f"{n}_x.jpg", n)
