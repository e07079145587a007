"""VILA, through the public API on checkpoint folders, against what the reference code computed for them.

Both generations of the reference: its main branch (`NAME_i`, the conventions of NVILA) and those before it
(`NAME_i__vila15branch`, `v1_single_folder_i`).
"""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from vila_jax.model import Model, from_pretrained
from vila_jax.vision.geometry import TileGeometry

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "vila"
CASES = sorted(path.stem for path in (GOLDEN / "e2e").glob("*.npz"))
ATOL = 1e-4


def era_of(case: str) -> str:
    if case.startswith("v1_single"):
        return "v1"
    return "vila1.5" if case.endswith("__vila15branch") else "nvila"


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, str], Model]:
    return {}


@pytest.fixture(params=CASES)
def case(request, models):
    """A model, its pictures, the arguments of a call, and what the reference computed."""
    name = request.param
    expected = dict(np.load(GOLDEN / "e2e" / f"{name}.npz"))
    facts = json.loads((GOLDEN / "e2e" / f"{name}.json").read_text())
    folder, era = name.removesuffix("__vila15branch")[:-2], era_of(name)
    if (folder, era) not in models:
        models[folder, era] = from_pretrained(GOLDEN / "checkpoints" / folder, era=era)
    images = [Image.fromarray(expected[f"image_{i}"]) for i in range(sum(k.startswith("image_") for k in expected))]
    return models[folder, era], images, call(facts, images), expected


def call(facts: dict, images: list) -> dict:
    """The old code was given a whole prompt; the main branch a question after pictures."""
    if "prompt" in facts:
        return {"prompt": facts["prompt"], "images": images}
    content = [{"type": "image", "image": image} for image in images]
    return {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": facts["prompt_text"]}]}]}


def tokens(geometry: TileGeometry) -> np.ndarray:
    return np.concatenate(geometry.segments(-1))


def test_token_ids(case):
    model, _, arguments, expected = case
    ids = model.token_ids(**arguments)
    assert ids == expected["input_ids"][0].tolist()


def test_pictures_and_features(case):
    model, images, _, expected = case
    if not images:
        return
    pixels, features = [], []
    for image in model.preprocessor.pictures(images):
        # within a picture we keep the overview in front, the reference behind
        order = np.roll(np.arange(len(image.pixels)), -1 if image.geometry.arrangement == "tiles" else 0)
        pixels.append(image.pixels[order])
        features.append(model.features(image)[order])
    np.testing.assert_allclose(np.concatenate(pixels), expected["pixel_values"], atol=1e-6)
    np.testing.assert_allclose(np.concatenate(features), expected["vision_tower_features"], atol=ATOL)


def test_embeddings_and_logits(case):
    model, _, arguments, expected = case
    np.testing.assert_allclose(model.embeddings(**arguments), expected["inputs_embeds"][0], atol=ATOL)
    np.testing.assert_allclose(model.logits(**arguments), expected["prefill_logits"][0], atol=ATOL)


def test_greedy_ids(case):
    model, _, arguments, expected = case
    wanted = expected["greedy_ids"].tolist()
    result = model.generate(**arguments, max_new_tokens=len(wanted), ignore_eos=True)
    assert list(result.token_ids) == wanted
