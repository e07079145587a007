"""VILA's `image_encoder` and `video_encoder`: what stands around visual tokens, and how videos become some.

Each is an object, or JSON in a string, whose `_target_` names a class of the reference and whose other keys are its
options. Older configs have neither and mean the basic ones, with their usual options.
"""

import json
from typing import Any

from vila_jax.hf.section import Section, supported
from vila_jax.vision.pooling import NUM_FRAMES, TSP, PoolSize, VideoConfig

IMAGE = "llava.model.encoders.BasicImageEncoder"
VIDEO = "llava.model.encoders.BasicVideoEncoder"
POOLING_VIDEO = "llava.model.encoders.TSPVideoEncoder"

_USUAL = {"start_tokens": None, "end_tokens": "\n"}
"""Options that both basic encoders have, and what `vila_jax.text.prompts` writes behind a picture."""


def check_image_encoder(top: Section) -> None:
    """Refuses any but the basic encoder with its usual options.

    Raises:
      ConfigError: it is another one, or malformed.
    """
    _check_basic(_encoder(top, "image_encoder", IMAGE))


def parse_video(top: Section, side: int) -> VideoConfig:
    """How videos are sampled and encoded.

    Args:
      top: the root config.
      side: visual tokens along one edge of a frame.

    Raises:
      ConfigError: an unknown encoder or option, or pool sizes that do not divide a frame.
    """
    key = "num_video_frames"
    frames = NUM_FRAMES if top.get(key) is None else top.integer(key, NUM_FRAMES)
    fps = top.number("fps", 1.0) if top.get("fps") else None  # 0 says no as well
    encoder = _encoder(top, "video_encoder", VIDEO, POOLING_VIDEO)
    if encoder.get("_target_") != POOLING_VIDEO:
        _check_basic(encoder)  # frames are read as pictures, and so is what stands around them
        return VideoConfig(frames, fps)
    usual = _USUAL | {"sep_tokens": None}
    _check_options(encoder, "pool_sizes", *usual)
    start, end, sep = (_text(encoder, name, default) for name, default in usual.items())
    return VideoConfig(frames, fps, TSP(_pool_sizes(encoder, side), start, end, sep))


def _encoder(top: Section, key: str, *targets: str) -> Section:
    """The options of an encoder, and its `_target_`, which is one of these or absent."""
    value = top.get(key)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise top.error(key, "JSON") from None
    encoder = Section({key: value}, top.name).section(key)
    if encoder.get("_target_") not in (None, *targets):
        raise encoder.error("_target_", " or ".join(targets))
    return encoder


def _check_basic(encoder: Section) -> None:
    _check_options(encoder, *_USUAL)
    for key, usual in _USUAL.items():
        if encoder.get(key, usual) != usual:
            raise encoder.error(key, repr(usual))


def _check_options(encoder: Section, *known: str) -> None:
    for key in encoder.values:
        if key not in ("_target_", *known):
            raise encoder.error(key, "no such option", supported(known))


def _text(encoder: Section, key: str, default: str | None) -> str | None:
    """A text; null is none, and not the default."""
    value = encoder.get(key, default)
    if value is not None and not isinstance(value, str):
        raise encoder.error(key, "a string or null")
    return value


def _pool_sizes(encoder: Section, side: int) -> tuple[PoolSize, ...]:
    key = "pool_sizes"
    sizes: Any = encoder.get(key)
    if not isinstance(sizes, list) or not sizes or not all(map(_is_pool_size, sizes)):
        raise encoder.error(key, "a list of triples of whole numbers from 1: frames, rows and columns")
    for _, rows, columns in sizes:
        if side % rows or side % columns:
            raise encoder.error(key, f"rows and columns that divide the {side} x {side} tokens of a frame")
    return tuple((frames, rows, columns) for frames, rows, columns in sizes)


def _is_pool_size(size: Any) -> bool:
    is_triple = isinstance(size, list) and len(size) == 3
    return is_triple and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in size)
