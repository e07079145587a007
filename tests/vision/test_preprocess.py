"""Pixel values against the PIL processors of transformers, bit for bit."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vila_jax.errors import ConfigError, ImageError
from vila_jax.vision.open import open_image
from vila_jax.vision.preprocess import PreprocessConfig, Preprocessor

SIZES = [(1, 1), (1, 50), (50, 1), (2, 2), (7, 13), (33, 500), (401, 30), (56, 56), (55, 57), (111, 112), (97, 211)]
"""(height, width)"""
ODD_MARGINS = [(365, 500), (427, 200)]  # (canvas - resized side) is odd: older versions of transformers differ there


def square(length: int) -> dict[str, int]:
    return {"height": length, "width": length}


def tile(length: int) -> dict:
    return {"size": {"shortest_edge": length}, "crop_size": square(length)}


def pinpoints(length: int, *grids: tuple[int, int]) -> dict:
    return tile(length) | {"image_grid_pinpoints": [[rows * length, columns * length] for rows, columns in grids]}


PUBLISHED = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
SINGLE = {
    "clip": (CLIPImageProcessorPil, tile(56)),
    "clip-odd": (CLIPImageProcessorPil, tile(45)),
    "clip-crop-smaller": (CLIPImageProcessorPil, {"size": 60, "crop_size": 41}),
    "clip-crop-larger": (CLIPImageProcessorPil, {"size": 40, "crop_size": 57, "resample": 2}),
    "clip-crop-only": (CLIPImageProcessorPil, {"do_resize": False, "crop_size": 56}),
    "clip-exact": (CLIPImageProcessorPil, {"size": [56, 56], "do_center_crop": False, "resample": 1}),
    "clip-raw": (CLIPImageProcessorPil, tile(56) | {"do_rescale": False, "do_normalize": False}),
    "clip-no-rescale": (CLIPImageProcessorPil, tile(56) | {"do_rescale": False, "image_mean": 127, "image_std": 64}),
    "clip-no-normalize": (CLIPImageProcessorPil, tile(56) | {"do_normalize": False, "rescale_factor": 1 / 127}),
    "clip-do_pad": (CLIPImageProcessorPil, tile(56) | {"do_pad": True}),
    "siglip": (SiglipImageProcessorPil, {"size": square(54)}),
    "llava": (LlavaImageProcessorPil, tile(56)),
    "llava-do_pad": (LlavaImageProcessorPil, tile(56) | {"do_pad": True}),
    "llava-do_pad-black": (LlavaImageProcessorPil, tile(56) | {"do_pad": True, "image_mean": 0}),
    "llava-do_pad-no-crop": (LlavaImageProcessorPil, {"size": 56, "do_pad": True, "do_center_crop": False}),
}
ANYRES = {
    "published-grids": pinpoints(56, *PUBLISHED),
    "odd-tile": pinpoints(45, (1, 2), (2, 2), (1, 4)),
    "one-tile": pinpoints(28, (1, 1)),
    "ties": pinpoints(56, (2, 2), (1, 4), (4, 1), (1, 2), (2, 1), (1, 1)),
    "exact-size": pinpoints(56, *PUBLISHED) | {"size": square(56)},
    "overview-padded": pinpoints(56, *PUBLISHED) | {"size": 50},
    "overview-cropped": pinpoints(56, *PUBLISHED) | {"size": {"height": 60, "width": 70}},
    "no-crop": pinpoints(56, *PUBLISHED) | {"do_center_crop": False},
    "no-crop-size": pinpoints(56, *PUBLISHED) | {"do_center_crop": False, "crop_size": None},
    "raw": pinpoints(56, *PUBLISHED) | {"do_rescale": False, "do_normalize": False, "resample": 0},
}


def ours(reference, model_type: str) -> Preprocessor:
    return Preprocessor(PreprocessConfig.from_hf(reference.to_dict(), model_type=model_type), patch_size=14)


def theirs(reference, image: Image.Image) -> np.ndarray:
    """float32 [P, 3, H, W]; without a tensor type their list of arrays keeps its own dtype."""
    pixels = np.asarray(reference(image)["pixel_values"][0])
    return (pixels if pixels.ndim == 4 else pixels[None]).astype(np.float32)


def picture(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    return photo.resize((size[1], size[0]))


@pytest.mark.parametrize("name", SINGLE)
def test_single_tile_equals_transformers(photos, name):
    cls, settings = SINGLE[name]
    reference = cls(**settings)
    preprocess = ours(reference, "llava")
    for size in [*SIZES, *ODD_MARGINS]:
        image = picture(photos["china"], size)
        result = preprocess(image)
        np.testing.assert_array_equal(result.pixels, theirs(reference, image), err_msg=f"{size}")
        assert result.image_size == size
        assert result.geometry == preprocess.geometry(size)
        assert result.geometry.grid is None


@pytest.mark.parametrize("name", ANYRES)
def test_anyres_equals_transformers(photos, name):
    reference = LlavaNextImageProcessorPil(**ANYRES[name])
    preprocess = ours(reference, "llava_next")
    for size in [*SIZES, *ODD_MARGINS]:
        image = picture(photos["flower"], size)
        result = preprocess(image)
        np.testing.assert_array_equal(result.pixels, theirs(reference, image), err_msg=f"{size}")
        assert result.geometry.num_tiles == len(result.pixels)
        assert tuple(reference(image)["image_sizes"][0]) == result.image_size == size


@pytest.mark.parametrize("photo", ["china", "flower", "astronaut"])
def test_photos_at_336_equal_transformers(photos, photo):
    for cls, settings, model_type in [
        (CLIPImageProcessorPil, tile(336), "llava"),
        (LlavaNextImageProcessorPil, pinpoints(336, *PUBLISHED), "llava_next"),
        (SiglipImageProcessorPil, {"size": square(384)}, "llava"),
    ]:
        reference = cls(**settings)
        expected = theirs(reference, photos[photo])
        np.testing.assert_array_equal(ours(reference, model_type)(photos[photo]).pixels, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK"])
def test_opened_pictures_of_other_modes_equal_transformers(photos, mode):
    """transformers lays transparency on white, too."""
    photo = photos["astronaut"].resize((90, 61))
    image = photo.convert(mode)
    if "A" in mode:
        image.putalpha(photo.convert("L"))
    reference = LlavaNextImageProcessorPil(**pinpoints(56, *PUBLISHED))
    result = ours(reference, "llava_next")(open_image(image))
    np.testing.assert_array_equal(result.pixels, theirs(reference, image))


def test_needle_of_a_picture_equals_transformers_where_that_is_feasible():
    needle = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1, 65535, 3), np.uint8))
    reference = LlavaNextImageProcessorPil(**pinpoints(56, *PUBLISHED))
    preprocess = ours(reference, "llava_next")
    for image in (needle, needle.transpose(Image.Transpose.ROTATE_90)):
        result = preprocess(image)
        np.testing.assert_array_equal(result.pixels, theirs(reference, image))
        assert result.geometry.mosaic().size == 0  # its share of the canvas is less than half a patch


@pytest.mark.parametrize("settings", [tile(336), {"size": 336, "crop_size": 336, "do_pad": True}])
@pytest.mark.parametrize("size", [(1, 65535), (65535, 1)])
def test_needle_that_would_take_gigabytes_is_refused_before_any_pixel(settings, size):
    preprocess = ours(LlavaImageProcessorPil(**settings), "llava")
    with pytest.raises(ImageError, match=rf"{size[0]} x {size[1]} pixels is too elongated"):
        preprocess.geometry(size)
    with pytest.raises(ImageError, match="too elongated"):
        preprocess(Image.new("RGB", size[::-1]))


def golden_cases(golden):
    return json.loads((golden / "hired_e2e" / "cases.json").read_text()).items()


@pytest.mark.parametrize("form", ["processor_config.json", "preprocessor_config.json"])
def test_golden_pixel_values(golden, form):
    """Hashes and samples recorded from the LLaVA code that the HiRED reference runs on."""
    for name, case in golden_cases(golden):
        folder = golden / "hired_e2e"
        model_type = json.loads((folder / case["checkpoint"] / "config.json").read_text())["model_type"]
        config = json.loads((folder / case["checkpoint"] / form).read_text())
        preprocess = Preprocessor(PreprocessConfig.from_hf(config, model_type=model_type), patch_size=14)
        result = preprocess(open_image(folder / case["image"]))
        with np.load(folder / f"{name}.npz") as recorded:
            np.testing.assert_array_equal(result.pixels[:, :, 8::48, 8::48], recorded["pixel_probe"])
        assert list(result.pixels.shape) == case["pixel_values_shape"]
        assert hashlib.sha256(result.pixels.astype("<f4").tobytes()).hexdigest() == case["pixel_values_sha256"]
        assert list(result.image_size) == case["image_size_hw"]
        assert result.geometry.grid == (tuple(case["grid_rows_cols"]) if case["grid_rows_cols"] else None)


def test_pictures_that_were_not_opened_are_refused():
    preprocess = ours(CLIPImageProcessorPil(**tile(56)), "llava")
    with pytest.raises(ImageError, match="expected mode RGB, got L"):
        preprocess(Image.new("L", (56, 56)))
    with pytest.raises(ImageError, match="positive height and width"):
        preprocess.geometry((0, 7))


@pytest.mark.parametrize("patch_size", [0, 57])
def test_patch_must_fit_into_a_tile(patch_size):
    config = PreprocessConfig.from_hf(tile(56), model_type="llava")
    with pytest.raises(ConfigError, match="patch_size"):
        Preprocessor(config, patch_size)
