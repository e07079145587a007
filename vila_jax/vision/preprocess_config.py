"""Reads how a checkpoint wants its pictures prepared, from the file of its Hugging Face image processor."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

from PIL import Image

from vila_jax.errors import ConfigError
from vila_jax.vision.geometry import Size

Triple = tuple[float, float, float]

_CLIP: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "default_to_square": False,
}
_HALF = [0.5, 0.5, 0.5]
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "LlavaImageProcessor": _CLIP | {"do_pad": False},
    "LlavaNextImageProcessor": _CLIP
    | {"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]},
    "SiglipImageProcessor": _CLIP
    | {"size": {"height": 224, "width": 224}, "do_center_crop": False, "image_mean": _HALF, "image_std": _HALF},
}
"""What the classes of transformers assume for a key that is not in the file."""

_REFUSED = ("pad_size", "use_square_size")
_CLASS_OF_MODEL = {"llava": "LlavaImageProcessor", "llava_next": "LlavaNextImageProcessor"}


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """How a picture becomes tiles, and tiles become pixel values. The order of the fields is the order of the steps.

    Attributes:
      pad_to_square: whether the picture is first centred on a square of the mean colour (`do_pad` of LLaVA).
      pinpoints: (height, width) of the canvases that LLaVA-NeXT may cut into tiles; None makes a single tile.
      size: (height, width) after resizing, or the length of the shorter edge; None leaves the size alone.
      resample: Pillow's number of the resampling filter.
      crop_size: (height, width) of the centre crop, which pads with black what is smaller; None crops nothing.
      rescale_factor: what the 8-bit values are multiplied with; None leaves them as they are.
      do_normalize: whether `mean` is subtracted and the rest divided by `std`.
      mean, std: of red, green and blue, after rescaling.
    """

    pad_to_square: bool
    pinpoints: tuple[Size, ...] | None
    size: Size | int | None
    resample: int
    crop_size: Size | None
    rescale_factor: float | None
    do_normalize: bool
    mean: Triple
    std: Triple

    def __post_init__(self):
        tile = self.tile_size  # raises where there is none
        for height, width in self.pinpoints or ():
            if height % tile or width % tile:
                what = f"a canvas of {height} x {width} pixels cannot be cut into tiles of {tile} x {tile}"
                raise _error("image_grid_pinpoints", what)

    @property
    def tile_size(self) -> int:
        """Pixels along one edge of a tile."""
        final = self.crop_size or self.size
        if isinstance(final, int) and (self.pad_to_square or self.pinpoints is not None):
            return final
        if not isinstance(final, tuple):
            raise _error("size", "without a centre crop, pictures of different shapes would give different tiles")
        if final[0] != final[1]:
            key = "size" if self.crop_size is None else "crop_size"
            raise _error(key, f"tiles must be square, got {final[0]} x {final[1]} pixels")
        return final[0]

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, model_type: str) -> "PreprocessConfig":
        """Reads the parsed `preprocessor_config.json` (older form) or `processor_config.json` (newer form).

        Args:
          config: the whole file, or the dictionary under `image_processor` of the newer form.
          model_type: `model_type` of the model's `config.json`; it decides where the file names no class, and must
            not contradict the class that it names.

        Raises:
          ConfigError: a value is missing, contradictory, or not supported; the message names the key.
        """
        config = _image_processor(config)
        name = _class_name(config, model_type)
        values = _DEFAULTS[name] | config
        for key in _REFUSED:
            if values.get(key):
                raise _error(key, f"not supported, got {values[key]!r}")
        anyres = name == "LlavaNextImageProcessor"
        if anyres:
            _check_anyres(values)
        square, normalize = _flag(values, "default_to_square"), _flag(values, "do_normalize")
        return cls(
            pad_to_square=name == "LlavaImageProcessor" and _flag(values, "do_pad"),
            pinpoints=_pinpoints(values["image_grid_pinpoints"]) if anyres else None,
            size=_size("size", values["size"], square=square) if _flag(values, "do_resize") else None,
            resample=_resample(values["resample"]),
            crop_size=_exact_size("crop_size", values["crop_size"]) if _flag(values, "do_center_crop") else None,
            rescale_factor=_number("rescale_factor", values["rescale_factor"]) if _flag(values, "do_rescale") else None,
            do_normalize=normalize,
            mean=_triple("image_mean", values["image_mean"] if normalize else values["image_mean"] or 0),
            std=_triple("image_std", values["image_std"] if normalize else 1, zero=False),
        )


def _error(key: str, what: str) -> ConfigError:
    return ConfigError(what, where=f"image processor, key `{key}`", fix="Correct the checkpoint's preprocessor file.")


def _image_processor(config: Mapping[str, Any]) -> dict[str, Any]:
    """The image processor's part of either form of the file."""
    config = config.get("image_processor", config)
    known = {"image_processor_type", "feature_extractor_type", "do_pad", *_REFUSED, *_CLIP}
    if not isinstance(config, Mapping) or not known & config.keys():
        raise ConfigError(
            "there is no setting of an image processor",
            where="image processor",
            fix="Pass `preprocessor_config.json`, or a `processor_config.json` that has the key `image_processor`.",
        )
    return dict(config)


def _class_name(config: Mapping[str, Any], model_type: str) -> str:
    """The class without its suffix; `...Fast` and `...Pil` are back ends of the same arithmetic."""
    key = "image_processor_type"
    named = config.get(key) or config.get("feature_extractor_type") or _CLASS_OF_MODEL.get(model_type)
    name = str(named).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name not in _DEFAULTS:
        raise _error(key, f"expected one of {', '.join(_DEFAULTS)}, got {named!r}")
    expected = _CLASS_OF_MODEL.get(model_type)
    if expected is not None and (name == "LlavaNextImageProcessor") != (expected == "LlavaNextImageProcessor"):
        raise _error(key, f"a model of type {model_type!r} cannot be fed by {name}")
    return name


def _check_anyres(values: Mapping[str, Any]) -> None:
    """LLaVA-NeXT cuts its canvas by `crop_size`, resizes the pieces to `size`: they must agree on the tile."""
    if not _flag(values, "do_resize"):
        raise _error("do_resize", "false is not supported by LlavaNextImageProcessor, whose overview is always resized")
    final = _size("size", values["size"], square=_flag(values, "default_to_square"))
    if values["crop_size"] is None or _flag(values, "do_center_crop"):
        return
    cut = _exact_size("crop_size", values["crop_size"])
    if cut not in (final, (final, final)):
        raise _error("crop_size", f"the canvas is cut into tiles of {cut[0]} x {cut[1]}, which `size` changes")


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise _error(key, f"expected true or false, got {value!r}")
    return bool(value)


def _number(key: str, value: object, *, zero: bool = True) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise _error(key, f"expected a number, got {value!r}")
    if value == 0 and not zero:
        raise _error(key, "zero would be divided by")
    return float(value)


def _triple(key: str, value: object, *, zero: bool = True) -> Triple:
    items = value if isinstance(value, list | tuple) else [value] * 3
    if len(items) != 3:
        raise _error(key, f"expected one number a colour channel, got {value!r}")
    red, green, blue = (_number(key, item, zero=zero) for item in items)
    return red, green, blue


def _length(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _error(key, f"expected a positive number of pixels, got {value!r}")
    return value


def _size(key: str, value: object, *, square: bool) -> Size | int:
    """A size in any of the forms that transformers accepts, as (height, width) or as the shorter edge."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return _length(key, value[0]), _length(key, value[1])
    if isinstance(value, Mapping):
        given = {name: length for name, length in value.items() if length is not None}
        if given.keys() == {"height", "width"}:
            return _length(key, given["height"]), _length(key, given["width"])
        if given.keys() == {"shortest_edge"}:
            return _length(key, given["shortest_edge"])
        raise _error(key, f"expected `shortest_edge`, or `height` and `width`, got {value!r}")
    edge = _length(key, value)
    return (edge, edge) if square else edge


def _exact_size(key: str, value: object) -> Size:
    size = _size(key, value, square=True)
    if isinstance(size, int):
        raise _error(key, f"expected `height` and `width`, got {value!r}")
    return size


def _resample(value: object) -> int:
    filters = {int(member) for member in Image.Resampling}
    if isinstance(value, bool) or not isinstance(value, int) or value not in filters:
        raise _error("resample", f"expected a Pillow filter from 0 to {max(filters)}, got {value!r}")
    return int(value)


def _pinpoints(value: object) -> tuple[Size, ...]:
    key = "image_grid_pinpoints"
    if not isinstance(value, list | tuple) or not value:
        raise _error(key, f"expected a list of [height, width], got {value!r}")
    return tuple(_exact_size(key, list(item) if isinstance(item, list | tuple) else None) for item in value)
