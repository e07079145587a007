"""Batches of drawn scenes. A batch is a function of (seed, stage, step) alone, so a resumed run sees the same data.

All questions about a picture share its visual tokens. They are packed into one row as segments that see the prefix and
themselves, with positions that restart after it, so that each is trained exactly as if it stood alone:

    token      <s> USER : v0 v1 .. v191 | what color ? ASSISTANT : red </s> | is there .. </s> | pad
    segment     0   0   0  0  0 ..  0   |  1    1    1     1     1  1   1   |  2   2   ..  2   | -1
    position    0   1   2  3  4 .. 194  | 195  196  197   198  199 200 201  | 195 196  ..      |  0
    target      -   -   -  -  - ..  -   |  -    -    -     -    red </s> -  |  -   ..          |  -
"""

import dataclasses
import zlib
from collections.abc import Iterator

import grain
import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from train.config import Stage
from train.scenes.conversations import choose_questions
from vila_jax.scenes import Question, Scene, draw_scene, patch_labels, presence
from vila_jax.vision.preprocess import Preprocessor, ProcessedImage

IGNORED = -100
PAD_SEGMENT = -1

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SceneFormat:
    """How scenes become arrays of static shape.

    Attributes:
      max_tiles: tiles reserved for every picture.
      prompt: text before and after a question, around the picture.
    """

    preprocessor: Preprocessor
    tokenizer: Tokenizer
    max_tiles: int = 5
    prompt: tuple[str, str] = ("USER:", "ASSISTANT:")


def batches(stage: Stage, form: SceneFormat, seed: int, start: int = 0) -> Iterator[Batch]:
    """The batches `start`, `start + 1`, ... of a stage, drawn ahead of time by background threads."""
    steps = grain.MapDataset.range(start, stage.steps)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    yield from steps.map(lambda step: make_batch(stage, form, seed, int(step))).to_iter_dataset(options)


def make_batch(stage: Stage, form: SceneFormat, seed: int, step: int) -> Batch:
    """Batch number `step`: tiles with labels, and for the `answers` stage the token rows."""
    rng = np.random.default_rng((seed, zlib.crc32(stage.name.encode()), step))
    scenes = [draw_scene(int(s), difficulty=stage.difficulty) for s in rng.integers(0, 2**31, stage.scenes)]
    images = [form.preprocessor(Image.fromarray(scene.image)) for scene in scenes]
    batch = tile_arrays(scenes, images, form.max_tiles)
    if stage.kind == "tower":
        return batch
    table = len(scenes) * form.max_tiles * images[0].geometry.patches_per_tile
    contents = batch["contents"].reshape(len(scenes), -1)
    rows = []
    for i, (scene, image) in enumerate(zip(scenes, images, strict=True)):
        order = image.geometry.order_with_newlines(table)
        if rng.random() < stage.thinned:
            order = thin(image.geometry.order(), contents[i] > 0, stage.shown, rng)
        source = np.where(order == table, table, order + i * form.max_tiles * image.geometry.patches_per_tile)
        rows.append(question_row(choose_questions(scene, stage.questions, rng), source, form, stage.row_length))
    return batch | {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def thin(order: np.ndarray, content: np.ndarray, shown: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """A random share of the visual tokens, in order, as a budget would leave them; no newlines.

    Without such rows the model reads a token's place in the picture from its place in the sequence, and every budget
    confuses it. Patches that show something are several times as likely to stay, so that questions can be answered.

    Args:
      order: flat indices of the picture's patches in token order.
      content: for every patch of all tiles, whether it shows more than background.
      shown: least and most that stays, as fractions.
    """
    count = max(1, int(len(order) * rng.uniform(*shown)))
    score = rng.gumbel(size=len(order)) + 2.0 * content[order]
    return order[np.sort(np.argsort(-score)[:count])]


def question_row(questions: list[Question], source: np.ndarray, form: SceneFormat, length: int) -> Batch:
    """One packed row: the shared prefix with the visual tokens, then each question and answer as a segment."""
    before, after = form.prompt
    prefix = form.tokenizer.encode(before).ids
    start = len(prefix) + len(source)
    row = {name: np.zeros(length, np.int32) for name in ("token_ids", "positions")}
    row |= {"source": np.full(length, -1, np.int32), "targets": np.full(length, IGNORED, np.int32)}
    row["segments"] = np.full(length, PAD_SEGMENT, np.int32)
    row["token_ids"][: len(prefix)] = prefix
    row["source"][len(prefix) : start] = source
    row["positions"][:start] = np.arange(start)
    row["segments"][:start] = 0
    at = start
    for segment, question in enumerate(questions, start=1):
        ask = form.tokenizer.encode(f"{question.text} {after}", add_special_tokens=False).ids
        answer = form.tokenizer.encode(f"{question.answer}</s>", add_special_tokens=False).ids
        tokens = ask + answer
        end = at + len(tokens)
        if end > length:
            break
        row["token_ids"][at:end] = tokens
        row["positions"][at:end] = start + np.arange(len(tokens))
        row["segments"][at:end] = segment
        row["targets"][end - len(answer) - 1 : end - 1] = answer
        at = end
    return row


def tile_arrays(scenes: list[Scene], images: list[ProcessedImage], max_tiles: int) -> Batch:
    """Tiles of all scenes, padded to `max_tiles` each, with the labels of their patches."""
    tile_px = images[0].pixels.shape[-1]
    side = images[0].geometry.side
    pixels = np.zeros((len(scenes), max_tiles, 3, tile_px, tile_px), np.float32)
    colors = np.zeros((len(scenes), max_tiles, side * side), np.int32)
    contents = np.zeros_like(colors)
    present: list[np.ndarray] = []
    for i, (scene, image) in enumerate(zip(scenes, images, strict=True)):
        pixels[i, : len(image.pixels)] = image.pixels
        for tile, crop in enumerate(tile_crops(image, tile_px)):
            colors[i, tile], contents[i, tile] = patch_labels(scene, crop, tile_px=tile_px, patch=tile_px // side)
        present += [presence(c, k) for c, k in zip(colors[i], contents[i], strict=True)]
    flat = {"pixels": pixels, "colors": colors, "contents": contents}
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in flat.items()} | {
        "present": np.stack(present, dtype=np.float32)
    }


def tile_crops(image: ProcessedImage, tile_px: int) -> list[tuple[int, int, int, int]]:
    """The part of the picture that each tile shows, `(x0, y0, x1, y1)`; scenes fill their canvas exactly."""
    height, width = image.image_size
    rows, columns = image.geometry.grid or (0, 0)
    corners = [(c * tile_px, r * tile_px) for r in range(rows) for c in range(columns)]
    return [(0, 0, width, height), *((x, y, x + tile_px, y + tile_px) for x, y in corners)]
