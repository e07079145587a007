"""A drawn data set in LLaVA's form with planted faults."""

import collections
import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.train.data.forms import png
from vila_jax.scenes import SINGLE, draw_scene

KINDS = (
    "missing picture",
    "corrupt picture",
    "empty conversation",
    "wrong number of pictures",
    "huge picture",
    "nothing to learn",
    "too many tiles",
)
OF_ROWS = KINDS[-2:]
"""What is found where samples are laid out, in rows of at most 5 tiles; the others are found where files are read."""

_FILES = {"missing picture": ["none.png"], "corrupt picture": ["cut.png", "empty.png"], "huge picture": ["huge.png"]}
_PICTURES = 32


@dataclasses.dataclass
class Planted:
    """Ids of faulty samples by what is wrong with them."""

    ids: dict[str, list[str]]

    def count(self, kinds) -> collections.Counter[str]:
        return collections.Counter({kind: len(self.ids[kind]) for kind in kinds if self.ids[kind]})

    @property
    def of_files(self) -> collections.Counter[str]:
        return self.count(set(KINDS) - set(OF_ROWS))

    @property
    def of_rows(self) -> collections.Counter[str]:
        return self.count(OF_ROWS)

    @property
    def all(self) -> collections.Counter[str]:
        return self.count(KINDS)


def plant(folder: Path, samples: int, share: float = 0.03, seed: int = 0) -> Planted:
    """Writes `data.json` and its pictures: questions about drawn scenes, each fourth without one, and faults of every
    kind in a share of the samples."""
    folder.mkdir(parents=True)
    scenes = [draw_scene(number, difficulty=SINGLE) for number in range(_PICTURES)]
    for number, scene in enumerate(scenes):
        (folder / f"{number}.png").write_bytes(png(Image.fromarray(scene.image)))
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:50])
    (folder / "empty.png").write_bytes(b"")
    (folder / "huge.png").write_bytes(_huge((folder / "0.png").read_bytes()))
    rng, planted = np.random.default_rng(seed), Planted({kind: [] for kind in KINDS})
    faulty = rng.choice(samples, max(len(KINDS), round(share * samples)), replace=False)
    kinds = {int(number): KINDS[place % len(KINDS)] for place, number in enumerate(faulty)}
    data = []
    for number in range(samples):
        scene = scenes[number % _PICTURES]
        question = scene.questions[number % len(scene.questions)]
        sample = _sample(number, question.text, question.answer)
        if kind := kinds.get(number):
            planted.ids[kind].append(str(number))
            _spoil(sample, kind, rng)
        elif number % 4 == 0:
            sample = _sample(number, "Why?", "so", picture=False)
        data.append(sample)
    (folder / "data.json").write_text(json.dumps(data))
    return planted


def _sample(number: int, question: str, answer: str, *, picture: bool = True) -> dict:
    said = [{"from": "human", "value": "<image>\n" * picture + question}, {"from": "gpt", "value": answer}]
    sample = {"id": str(number), "conversations": said}
    return sample | {"image": f"{number % _PICTURES}.png"} if picture else sample


def _spoil(sample: dict, kind: str, rng: np.random.Generator) -> None:
    said = sample["conversations"]
    if kind in _FILES:
        sample["image"] = _FILES[kind][rng.integers(len(_FILES[kind]))]
    elif kind == "empty conversation":
        sample["conversations"] = []
    elif kind == "wrong number of pictures":
        said[0]["value"] += "<image>"
    elif kind == "nothing to learn":
        said[0]["value"] += " What is this?" * 200
    else:
        sample["image"] = [sample["image"]] * 3
        said[0]["value"] = "<image>\n" * 3 + "What is it?"


def _huge(picture: bytes) -> bytes:
    """A picture file whose header claims 60,000 x 60,000 pixels."""
    header = bytearray(picture)
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    return bytes(header)
