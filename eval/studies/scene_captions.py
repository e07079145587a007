"""Drawn scenes with captions, written to disk in the form of Flickr8k."""

import csv
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vila_jax.scenes import SceneObject, draw_scene

CAPTIONS = 5  # of each picture, as in Flickr8k
_MOST_THINGS = 3  # in a caption
_PLACED = 0.5  # of the things in a caption say where they are


def write_scenes(folder: Path, count: int, form: Literal["token", "csv"] = "token") -> None:
    """Writes the first `count` training scenes, five captions each.

    Args:
      folder: gets `Images/` and the file of captions.
      form: `Flickr8k.token.txt` or `captions.txt`.
    """
    images = folder / "Images"
    images.mkdir(parents=True, exist_ok=True)
    captions = []
    for seed in range(count):
        scene = draw_scene(seed)
        name = f"scene_{seed:05d}.jpg"
        Image.fromarray(scene.image).save(images / name, quality=95)
        rng = np.random.default_rng(seed)
        captions += [(name, i, describe(scene.objects, rng)) for i in range(CAPTIONS)]
    if form == "token":
        lines = [f"{name}#{i}\t{caption}\n" for name, i, caption in captions]
        (folder / "Flickr8k.token.txt").write_text("".join(lines), encoding="utf-8")
        return
    with (folder / "captions.txt").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((name, caption) for name, _, caption in captions)])


def describe(things: tuple[SceneObject, ...], rng: np.random.Generator) -> str:
    """A sentence about at most three of the things, in any order: `A red ring at the top left , and a blue card .`"""
    chosen = [things[i] for i in rng.permutation(len(things))[:_MOST_THINGS]]
    parts = [_phrase(thing, placed=rng.random() < _PLACED) for thing in chosen]
    sentence = " , ".join([*parts[:-1], f"and {parts[-1]}"]) if len(parts) > 1 else "".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]} ." if sentence else "Nothing but dark ground ."


def _phrase(thing: SceneObject, *, placed: bool) -> str:
    article = "an" if thing.color[0] in "aeiou" else "a"
    return f"{article} {thing.color} {thing.kind}" + (f" at the {thing.place}" if placed else "")
