"""Pixel values of VILA pictures against the reference."""

import json

import numpy as np
import pytest
from PIL import Image

from vila_jax.errors import ConfigError, ImageError
from vila_jax.vision.vila import VilaPreprocessor
from vila_jax.vision.vila_config import VilaPictures

NAMES = ["wide", "tall", "square", "small", "rgba_gray"]
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def recorded(golden):
    with np.load(golden / "vila" / "preprocess" / "preprocess_pixels.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def processors(golden):
    return json.loads((golden / "vila" / "preprocess" / "preprocess_processors.json").read_text())


def preprocessor(processor: dict, mode: str, tile: int = 28, **others) -> VilaPreprocessor:
    mean, std = tuple(processor["image_mean"]), tuple(processor["image_std"])
    crop = bool(processor.get("do_center_crop"))
    settings = {"side": tile // 14, "window": 1, "column_major": False, "center_crop": crop}
    return VilaPreprocessor(
        VilaPictures(mode=mode, tile_size=tile, mean=mean, std=std, resample=processor["resample"], **settings | others)
    )


def equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["resize", "pad", "default"])
@pytest.mark.parametrize("tower", ["siglip", "clip"])
def test_single_tile(recorded, processors, tower, mode, name):
    preprocess = preprocessor(processors[tower], mode)
    result = preprocess(Image.fromarray(recorded[f"image_{name}"]))
    equal(result.pixels, recorded[f"{tower}_{mode}_{name}"][None])
    assert result.geometry == preprocess.geometry(recorded[f"image_{name}"].shape[:2])
    assert (result.geometry.num_tiles, result.scales) == (1, None)


@pytest.mark.parametrize("name", NAMES)
def test_dynamic(recorded, processors, name):
    preprocess = preprocessor(processors["siglip"], "dynamic", max_tiles=6)
    image, expected = Image.fromarray(recorded[f"image_{name}"]), recorded[f"siglip_dynamic_{name}"]
    result = preprocess(image)
    equal(result.pixels, np.roll(expected, 1, axis=0))  # theirs ends with the overview
    assert result.geometry.num_tiles == len(expected)
    assert result.scales is None
    among_others = preprocess(image, alone=False)
    equal(among_others.pixels, recorded[f"siglip_default_{name}"][None])
    assert among_others.geometry == preprocess.geometry((image.height, image.width), alone=False)
    assert among_others.geometry.num_tiles == 1


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_s2(recorded, processors, name):
    preprocess = preprocessor(processors["siglip"], "dynamic_s2", scales=(28, 56), resize_to=1, max_tiles=6)
    image = Image.fromarray(recorded[f"image_{name}"])
    result = preprocess(image)
    equal(result.pixels, recorded[f"siglip_dynamic_s2_{name}"])
    assert result.geometry.grid == tuple(recorded[f"siglip_dynamic_s2_block_{name}"])
    assert result.scales.index.shape[:3] == (result.geometry.num_tiles, 4, 2)
    among_others = preprocess(image, alone=False)
    equal(among_others.pixels, recorded[f"siglip_default_{name}"][None])
    assert among_others.geometry.num_tiles == 1
    assert among_others.scales.index.shape == (1, *result.scales.index.shape[1:]), "one static shape for both"


CHECKPOINTS = {  # mode, edge of a tile, other settings; those that pad have CLIP, all others SigLIP
    "vila15_llama_siglip": ("resize", 56, {}),
    "v1arch_llama_clip_pad": ("pad", 56, {}),
    "v1_single_folder": ("pad", 56, {}),
    "nvila_lite_qwen2_dynamic": ("dynamic", 70, {"max_tiles": 6}),
    "nvila_qwen2_dynamic_s2": ("dynamic_s2", 56, {"scales": (56, 112, 168), "resize_to": 2}),
}


@pytest.mark.parametrize("case", ["0", "1"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pictures_of_whole_runs(golden, processors, name, case):
    mode, tile, others = CHECKPOINTS[name]
    preprocess = preprocessor(processors["clip" if mode == "pad" else "siglip"], mode, tile, **others)
    with np.load(golden / "vila" / "e2e" / f"{name}_{case}.npz") as recorded:
        images = [Image.fromarray(recorded[key]) for key in sorted(recorded) if key.startswith("image_")]
        expected = recorded["pixel_values"]
    results = [preprocess(image, alone=len(images) == 1) for image in images]
    ours = [np.roll(r.pixels, -1, axis=0) if mode == "dynamic" else r.pixels for r in results]
    equal(np.concatenate(ours), expected)


def test_clip_crops_what_dynamic_leaves_to_its_processor(recorded, processors):
    preprocess = preprocessor(processors["clip"], "dynamic", max_tiles=6)
    result = preprocess(Image.fromarray(recorded["image_wide"]), alone=False)
    equal(result.pixels, recorded["clip_default_wide"][None])


@pytest.mark.parametrize("mode", ["pad", "default"])
def test_needles_are_refused_before_any_pixel(processors, mode):
    preprocess = preprocessor(processors["clip"], mode, 336)
    with pytest.raises(ImageError, match="too elongated"):
        preprocess.geometry((1, 65535))
    with pytest.raises(ImageError, match="positive height"):
        preprocess.geometry((0, 7))


def test_needles_are_cut_into_a_row_of_tiles(processors):
    preprocess = preprocessor(processors["siglip"], "dynamic", max_tiles=4)
    assert preprocess.geometry((1, 65535)).grid == (1, 4)
    assert preprocess.geometry((65535, 1)).grid == (4, 1)


def test_pictures_that_were_not_opened_are_refused(processors):
    with pytest.raises(ImageError, match="expected mode RGB, got L"):
        preprocessor(processors["siglip"], "dynamic")(Image.new("L", (56, 56)))


@pytest.mark.parametrize(
    "key, changes",
    [
        ("image_size", {"tile_size": 0}),
        ("patch_size", {"side": 0}),
        ("patch_size", {"side": 57}),
        ("mm_projector_type", {"window": 5}),
        ("image_std", {"std": (0.5, 0.0, 0.5)}),
        ("resample", {"resample": 99}),
        ("era", {"column_major": True}),
        ("era", {"mode": "dynamic_s2", "scales": (56,), "column_major": True, "window": 2}),
        ("s2_scales", {"mode": "s2"}),
        ("s2_scales", {"scales": (56,)}),
        ("s2_scales", {"mode": "s2", "scales": (56, 100)}),
        ("s2_scales", {"mode": "s2", "scales": (112, 56)}),
        ("s2_scales", {"mode": "dynamic_s2", "scales": (112, 224)}),
        ("s2_resize_output_to_scale_idx", {"mode": "s2", "scales": (56, 112), "resize_to": 2}),
        ("max_tiles", {"mode": "dynamic", "min_tiles": 3, "max_tiles": 2}),
        ("max_tiles", {"mode": "dynamic", "min_tiles": 0}),
        ("max_tiles", {"mode": "dynamic_s2", "scales": (56, 224), "max_tiles": 12}),
    ],
)
def test_impossible_values_are_refused(key, changes):
    settings = {
        "mode": "resize", "tile_size": 56, "mean": HALF, "std": HALF, "resample": 3,
        "side": 4, "window": 1, "column_major": False,
    }  # fmt: skip
    VilaPictures(**settings)
    with pytest.raises(ConfigError, match=f"key `{key}`"):
        VilaPictures(**(settings | changes))
