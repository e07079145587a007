"""Floors: the least time of each stage of a request, from its FLOPs, its bytes and the rates of a machine.

A stage takes at least `max(FLOPs / rate, bytes / bandwidth)`, and stages follow one another. Bytes are those of
weights, read once, and of keys and values, written once at prefill and read at every step; activations are free.
"""

import dataclasses
from collections.abc import Sequence

from vila_jax.bench import flops
from vila_jax.bench.machine import Rates
from vila_jax.bench.memory import kv_bytes_per_token, weight_bytes
from vila_jax.budgets import Step, layer_tokens
from vila_jax.budgets.tower import TowerReduction
from vila_jax.nn.config import VLMConfig
from vila_jax.quantize.spec import Quantization


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage computes and moves at least."""

    flops: int | float
    bytes: int | float

    def seconds(self, rates: Rates) -> float:
        """The floor of a stage."""
        return max(self.flops / rates.flops, self.bytes / rates.bandwidth)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is asked of a model: a batch of equal rows.

    Attributes:
      tiles: of a row.
      text, visual: tokens of a row; of the visual ones those that the decoder is given.
      step: of a budget inside the decoder.
      reduction: of a budget inside the tower.
      itemsize: bytes of a weight, and of an entry of the cache, where they are not quantised.
      quantization: of weights and cache.
    """

    batch: int
    tiles: int
    text: int
    visual: int
    itemsize: int
    step: Step | None = None
    reduction: TowerReduction | None = None
    quantization: Quantization | None = None


def tower_work(config: VLMConfig, sizes: Sizes) -> Work:
    """All tiles of the batch through the tower."""
    reduced = sizes.reduction
    tile = flops.tower_flops(config) if reduced is None else flops.reduced_tower_flops(config, reduced)
    return Work(sizes.batch * sizes.tiles * tile, _weight_bytes(config, sizes, "vision_tower"))


def projector_work(config: VLMConfig, sizes: Sizes) -> Work:
    """The visual tokens that are kept, through the projector."""
    work = sizes.batch * flops.projector_flops(config, sizes.visual)
    return Work(work, _weight_bytes(config, sizes, "projector"))


def body_work(config: VLMConfig, sizes: Sizes) -> Work:
    """The prompts through the layers of the decoder, whose keys and values are written."""
    decoder = config.decoder
    work = flops.decoder_flops(decoder, sizes.text, sizes.visual, sizes.step) - _head_flops(config)
    each = [sizes.text + own for own in layer_tokens(sizes.step, decoder.num_layers, sizes.visual)]
    return Work(
        sizes.batch * work,
        _weight_bytes(config, sizes, "decoder.layers") + sizes.batch * _cache_bytes(config, each, sizes),
    )


def head_work(config: VLMConfig, sizes: Sizes) -> Work:
    """The head, on the last position of every row."""
    return Work(sizes.batch * _head_flops(config), _head_bytes(config, sizes))


def prefill_stages(config: VLMConfig, sizes: Sizes) -> list[Work]:
    """From pixels to the first token."""
    return [make(config, sizes) for make in (tower_work, projector_work, body_work, head_work)]


def decode_work(config: VLMConfig, sizes: Sizes, generated: int | float) -> Work:
    """One step of the whole batch.

    Args:
      generated: tokens of a row that are in the cache besides its prompt; over many steps their mean.
    """
    decoder = config.decoder
    each = [sizes.text + own + generated for own in layer_tokens(sizes.step, decoder.num_layers, sizes.visual)]
    weights = flops.layer_weights(decoder) + decoder.hidden_size * decoder.vocab_size
    attention = 4 * decoder.num_heads * decoder.head_dim * sum(_seen(config, each))
    cache = _cache_bytes(config, [own + 1 for own in _seen(config, each)], sizes)
    read = _weight_bytes(config, sizes, "decoder.layers") + _head_bytes(config, sizes)
    return Work(sizes.batch * (2 * weights + attention), read + sizes.batch * cache)


def prefill_floor(config: VLMConfig, sizes: Sizes, rates: Rates) -> float:
    """Seconds from pixels to the first token."""
    return sum(work.seconds(rates) for work in prefill_stages(config, sizes))


def _head_flops(config: VLMConfig) -> int:
    return 2 * config.decoder.hidden_size * config.decoder.vocab_size


def _seen(config: VLMConfig, each: Sequence[int | float]) -> list[int | float]:
    """Tokens that the next one attends to in every layer."""
    windows = [config.decoder.sliding_window(layer) for layer in range(len(each))]
    return [own if window is None else min(own, window) for own, window in zip(each, windows, strict=True)]


def _cache_bytes(config: VLMConfig, each: Sequence[int | float], sizes: Sizes) -> float:
    """Keys and values of one row, with so many tokens in each layer."""
    per_token = kv_bytes_per_token(config.decoder, sizes.itemsize, sizes.quantization)
    return sum(each) * per_token / config.decoder.num_layers


def _weight_bytes(config: VLMConfig, sizes: Sizes, part: str) -> int:
    """All weights of a part, see `vila_jax.bench.memory.weight_bytes`."""
    return weight_bytes(config, sizes.itemsize, sizes.quantization).get(part, 0)


def _head_bytes(config: VLMConfig, sizes: Sizes) -> int:
    return _weight_bytes(config, sizes, "decoder.embedding" if config.decoder.tie_embeddings else "decoder.head")
