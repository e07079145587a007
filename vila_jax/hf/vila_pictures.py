"""How VILA cuts and normalises pictures: keys of the root config and `preprocessor_config.json` -> `VilaPictures`."""

import math
from collections.abc import Mapping
from typing import Any

from vila_jax.errors import ConfigError
from vila_jax.hf.section import Section
from vila_jax.nn.config import TowerKind, VisionConfig
from vila_jax.vision.vila_config import Mode, Triple, VilaPictures

_MODES: dict[str, Mode] = {
    "resize": "resize",
    "pad": "pad",
    "square": "default",
    "dynamic": "dynamic",
    "dynamic_s2": "dynamic_s2",
}
_BICUBIC = 3
_SPLIT = 336  # what the code assumed for s2_max_split_size
_HALF: Triple = (0.5, 0.5, 0.5)
_MEAN_STD: dict[TowerKind, tuple[Triple, Triple]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": (_HALF, _HALF),
    "intern": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def parse_pictures(
    top: Section, vision: VisionConfig, native_size: int, preprocessor: Mapping[str, Any] | None
) -> VilaPictures:
    """How pictures are prepared, but for what the projector decides (`window` and `column_major`).

    Args:
      top: the root config.
      vision: the tower, at the size of its tiles.
      native_size: of the tower's tiles before `vision_resolution`, to which the processor may still be set.
      preprocessor: contents of the tower's `preprocessor_config.json`; InternViT's is a stub.

    Raises:
      ConfigError: an unknown mode, scales that are missing or cannot be cut into tiles, or another size of tiles.
    """
    mode, tile = _mode(top, vision.kind), vision.image_size
    scales = _scales(top, tile) if mode in ("s2", "dynamic_s2") else ()
    processor = Section(preprocessor or {}, "preprocessor_config.json")
    _check_processor(processor, {tile, native_size, *scales[-1:]})
    mean, std = _MEAN_STD[vision.kind]
    min_tiles, max_tiles = _number_of_tiles(top, mode, scales)
    own_filter = mode in ("pad", "default")  # all others resize before the processor does, always bicubic
    return VilaPictures(
        mode=mode,
        tile_size=tile,
        mean=_triple(processor, "image_mean", mean),
        std=_triple(processor, "image_std", std),
        resample=processor.integer("resample", _BICUBIC, minimum=0) if own_filter else _BICUBIC,
        min_tiles=min_tiles,
        max_tiles=max_tiles,
        scales=scales,
        resize_to=_resize_to(top, len(scales)) if scales else 0,
        side=vision.side,
        window=1,
        column_major=False,
        center_crop=processor.flag("do_center_crop", vision.kind == "clip"),
    )


def _mode(top: Section, kind: TowerKind) -> Mode:
    mode: Mode = top.choice("image_aspect_ratio", "square", _MODES)
    if top.flag("dynamic_s2", False) != (mode == "dynamic_s2"):
        raise top.error("dynamic_s2", f"{str(mode == 'dynamic_s2').lower()} for an image_aspect_ratio of {mode!r}")
    if not top.flag("s2", False):
        return mode
    if mode != "resize" and (mode != "default" or kind == "clip"):  # CLIP's own processor crops
        raise top.error("image_aspect_ratio", "'resize', because s2 is on")
    return "s2"


def _scales(top: Section, tile: int) -> tuple[int, ...]:
    """Edges in pixels, smallest first; each is cut into squares of at most `s2_max_split_size`."""
    value = top.get("s2_scales")
    wanted = f"edges in pixels, multiples of the tower's {tile}, such as '{tile},{2 * tile}'"
    texts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    if not texts or not all(str(text).strip().isdecimal() and int(text) > 0 for text in texts):
        raise top.error("s2_scales", wanted)
    scales = sorted(int(text) for text in texts)
    key = "s2_max_split_size"
    split = _SPLIT if top.get(key) is None else top.integer(key, _SPLIT)
    for scale in scales:
        if scale != math.ceil(scale / split) * tile:
            raise top.error("s2_scales", f"{wanted}, cut into pieces of at most {key} = {split}")
    return tuple(scales)


def _resize_to(top: Section, num_scales: int) -> int:
    """Which scale's size all feature maps are brought to."""
    key = "s2_resize_output_to_scale_idx"
    index = 0 if top.get(key) is None else top.integer(key, 0, minimum=-num_scales)
    if index >= num_scales:
        raise top.error(key, f"one of {num_scales} scales")
    return index % num_scales


def _number_of_tiles(top: Section, mode: Mode, scales: tuple[int, ...]) -> tuple[int, int]:
    """Least and most tiles of a grid; the largest scale of dynamic_s2 has at least those of its square."""
    least = 1 if top.get("min_tiles") is None else top.integer("min_tiles", 1)
    most = 12 if top.get("max_tiles") is None else top.integer("max_tiles", 12)
    needed = (scales[-1] // scales[0]) ** 2 if mode == "dynamic_s2" else least
    if mode in ("dynamic", "dynamic_s2") and most < needed:
        raise top.error("max_tiles", f"at least {needed}")
    return least, most


def _check_processor(processor: Section, sizes: set[int]) -> None:
    """Refuses a processor of another tile, or one that skips a step."""
    for key in ("do_resize", "do_rescale", "do_normalize"):
        processor.fixed(key, True)
    if processor.get("rescale_factor") is not None and abs(processor.number("rescale_factor", 1.0) - 1 / 255) > 1e-9:
        raise processor.error("rescale_factor", "1 / 255")
    for key in ("size", "crop_size"):
        value = processor.get(key)
        edges = value.values() if isinstance(value, Mapping) else [] if value is None else [value]
        if any(edge is not None and edge not in sizes for edge in edges):
            raise ConfigError(
                f"pictures are prepared at {value}, but the tower takes {' or '.join(map(str, sorted(sizes)))} pixels",
                where=processor.where(key),
                fix="Use the files that were published with this model.",
            )


def _triple(processor: Section, key: str, default: Triple) -> Triple:
    value = processor.get(key)
    if value is None:
        return default
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(isinstance(n, int | float) and 0 < n <= 1 for n in numbers):
        raise processor.error(key, "three numbers between 0 and 1")
    red, green, blue = map(float, numbers)
    return red, green, blue
