"""Captions of COCO, Flickr30k and Flickr8k, five for every photo, and retrieval on Flickr8k.

    dataset_coco.json, dataset_flickr30k.json    Karpathy's splits: {"images": [{"filename", "filepath", "split",
                                                 "sentences": [{"raw"}], "cocoid"}]}
    captions_val2017.json                        COCO's own: {"images": [{"id", "file_name"}], "annotations": [...]}
    Flickr_8k.testImages.txt                     names of photos, one in each line, beside the files that
                                                 `eval.studies.flickr8k` reads

Papers use Karpathy's test splits (5000 and 1000 photos) and the authors' test split of Flickr8k (1000). The Hub's copy
of Flickr30k calls all of its photos `test`, about 31,800: a score of them is another number.
"""

import collections
from collections.abc import Callable, Iterator
from pathlib import Path

from eval.studies.flickr8k import list_photos
from eval.tasks import prompts
from eval.tasks.files import ON_HUB, File, Row, Unreadable, find, fingerprint, hub_rows, load_json, need, picture
from eval.tasks.sample import Sample, Task

_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_COCO = f"{_KARPATHY} (photos: https://cocodataset.org) and {ON_HUB}/COCO-Caption2017"
_FLICKR30K = f"{_KARPATHY} (photos: https://shannon.cs.illinois.edu/DenotationGraph) and {ON_HUB}/flickr30k"
_FLICKR8K = "https://github.com/jbrownlee/Datasets/releases/tag/Flickr8k"
_PARTS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
_HUB = {"val2017": ("val",), "val2014": ("val",)}  # Karpathy's splits of COCO are not on the Hub with pictures


def _karpathy(path: Path, split: str, photos: tuple[str, ...]) -> Iterator[Row]:
    for row in load_json(path)["images"]:
        if row["split"] in _PARTS[split]:
            name = row["filename"]
            places = (f"{row.get('filepath', '.')}/{name}", *(f"{photo}/{name}" for photo in photos), name)
            sentences = [sentence["raw"] for sentence in row["sentences"]]
            yield {"question_id": row.get("cocoid", name), "answer": sentences, "image": File(path.parent, places)}


def _coco_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    names = [f"captions_{split}.json", f"annotations/captions_{split}.json"]
    names = names if split.startswith("val20") else ["dataset_coco.json"]
    path = find(folder, names)
    if path is None:
        yield from hub_rows(folder, _HUB.get(split, (split,)), names, _COCO)
    elif split in _PARTS:
        yield from _karpathy(path, split, ())
    else:
        data = load_json(path)
        said = collections.defaultdict(list)
        for note in data["annotations"]:
            said[note["image_id"]].append(note["caption"])
        for row in data["images"]:
            image = File(folder, (f"{split}/{row['file_name']}", row["file_name"]))
            yield {"question_id": row["id"], "answer": said[row["id"]], "image": image}


def _flickr30k_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    path = find(folder, ["dataset_flickr30k.json"])
    if path is None:
        yield from hub_rows(folder, (split,), ["dataset_flickr30k.json"], _FLICKR30K)
    else:
        yield from _karpathy(path, split, ("flickr30k-images", "flickr30k_images", "images", "Images"))


def _flickr8k_rows(folder: Path, split: str) -> Iterator[Row | Unreadable]:
    names = [f"{place}Flickr_8k.{'dev' if split == 'val' else split}Images.txt" for place in ("", "Flickr8k_text/")]
    wanted = need(folder, names, _FLICKR8K).read_text(encoding="utf-8").split()
    there = {path.name: (path, captions) for path, captions in list_photos(folder).photos.items()}
    first = 0
    for name in wanted:
        if name not in there:
            yield Unreadable(name, "the photo or its captions are missing")
            continue
        path, captions = there[name]
        image = File(path.parent, (name,))
        yield {"question_id": name, "answer": list(captions), "image": image, "first": first}
        first += len(captions)


def _captions(row: Row, style: str) -> Sample:
    shown, said = picture(row["image"]), row.get("answer", row.get("caption"))
    references = (said,) if isinstance(said, str) else tuple(said or ())
    name = str(row.get("question_id", row.get("img_id", row.get("filename", fingerprint(shown)))))
    return Sample(
        id=name,
        cluster=name,
        pictures=(shown,),
        prompt=prompts.CAPTION,
        references=references,
        answer=references[0] if references else "",
    )


def _retrieval(row: Row, style: str) -> Sample:
    """Nothing is asked: a model that embeds pictures and texts scores the photo with every reference of all samples."""
    shown, captions = picture(row["image"]), tuple(row["answer"])
    numbers = tuple(range(row["first"], row["first"] + len(captions)))
    name = row["question_id"]
    return Sample(name, name, (shown,), "", captions, extras={"captions": numbers, "scores": None})


def _task(
    name: str, published: str, splits: tuple[str, ...], rows: Callable[[Path, str], Iterator[Row | Unreadable]]
) -> Task:
    return Task(
        name=name,
        summary="one sentence about a photo, five references",
        published=published,
        metric="captions",
        variant="pycocoevalcap",
        splits=splits,
        max_new_tokens=prompts.same(64),
        rows=rows,
        to_sample=_captions,
        demonstrated="train",
    )


COCO = _task("coco_captions", _COCO, ("test", "val", "train", "val2014", "val2017"), _coco_rows)
FLICKR30K = _task("flickr30k_captions", _FLICKR30K, ("test", "val", "train"), _flickr30k_rows)
FLICKR8K = _task("flickr8k_captions", _FLICKR8K, ("test", "val", "train"), _flickr8k_rows)
FLICKR8K_RETRIEVAL = Task(
    name="flickr8k_retrieval",
    summary="photos and captions find each other",
    published=_FLICKR8K,
    metric="retrieval_recall",
    variant="blip",
    splits=("test", "val"),
    max_new_tokens=prompts.same(0),
    rows=_flickr8k_rows,
    to_sample=_retrieval,
)
