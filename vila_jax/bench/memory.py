"""Bytes that a model takes on its devices, counted from the config alone."""

import dataclasses
import functools
import itertools
import math
import types
from collections.abc import Mapping, Sequence

from vila_jax.hf.load import weight_shapes
from vila_jax.nn.attention import causal_blocks
from vila_jax.nn.config import DecoderConfig, VLMConfig
from vila_jax.quantize.spec import Quantization
from vila_jax.quantize.structure import entry_bytes, stored_bytes

FLOAT32 = 4


def parameter_counts(config: VLMConfig) -> dict[str, int]:
    """Entries of the weights that are built, by part: `vision_tower`, `projector`, `newline`, `decoder.embedding`,
    `decoder.layers`, `decoder.norm` and `decoder.head`; parts that the model lacks are left out."""
    return _by_part({name: math.prod(shape) for name, shape in parameter_shapes(config).items()})


def weight_bytes(config: VLMConfig, itemsize: int, quantization: Quantization | None = None) -> dict[str, int]:
    """Bytes of the weights by part, as `parameter_counts`; of quantised ones those of values and scales.

    Args:
      itemsize: bytes of one entry of a weight that is not quantised.
    """
    shapes = parameter_shapes(config)
    return _by_part({name: stored_bytes(name, shape, quantization, itemsize) for name, shape in shapes.items()})


def _by_part(sizes: Mapping[str, int]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, size in sizes.items():
        part, *rest = name.split(".")
        part = f"decoder.{rest[0]}" if part == "decoder" else part
        sums[part] = sums.get(part, 0) + size
    return sums


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: VLMConfig) -> Mapping[str, tuple[int, ...]]:
    """Dotted path of every weight -> its shape."""
    return types.MappingProxyType(weight_shapes(config))


def kv_bytes_per_token(config: DecoderConfig, itemsize: int, quantization: Quantization | None = None) -> int:
    """Keys and values of one token in all layers.

    Args:
      itemsize: bytes of an entry that is not quantised.
    """
    return 2 * config.num_layers * config.num_kv_heads * entry_bytes(config.head_dim, quantization, itemsize)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a batch of equal requests, at the moment when memory is fullest.

    Attributes:
      weights: all parameters.
      cache: keys and values, at the static length that the engine allocates.
      logits: float32 scores of the next token.
      working: at most about what a prefill needs besides, in its hungriest layer. XLA often finds ways to need less: on
        CPUs its own plans lie between a third of this and all of it.
    """

    weights: int
    cache: int
    logits: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.logits + self.working


def memory_plan(
    config: VLMConfig,
    *,
    itemsize: int,
    batch: int,
    tiles: int,
    prompt: int,
    cache_length: int | Sequence[int],
    flash: bool,
    quantization: Quantization | None = None,
) -> MemoryPlan:
    """Plans the memory of a batch.

    Args:
      itemsize: bytes of one weight or activation.
      tiles: of the whole batch.
      prompt: padded length of every row.
      cache_length: static length of the cache, of all layers or of each.
      flash: whether attention runs without writing its scores to memory.
      quantization: of weights and cache. Some compilers write one converted weight at a time out, which is counted.
    """
    lengths = [cache_length] * config.decoder.num_layers if isinstance(cache_length, int) else cache_length
    return MemoryPlan(
        weights=sum(weight_bytes(config, itemsize, quantization).values()),
        cache=batch
        * sum(lengths)
        * kv_bytes_per_token(config.decoder, itemsize, quantization)
        // config.decoder.num_layers,
        logits=batch * config.decoder.vocab_size * FLOAT32,
        working=max(
            tower_working_bytes(config, tiles, itemsize, flash),
            decoder_working_bytes(config.decoder, batch, prompt, itemsize, flash),
        )
        + _converted_bytes(config, itemsize, quantization),
    )


def _converted_bytes(config: VLMConfig, itemsize: int, quantization: Quantization | None) -> int:
    """The largest of the quantised weights, in the dtype of computation."""
    meant = [shape for name, shape in parameter_shapes(config).items() if quantization and quantization.means(name)]
    return itemsize * max((math.prod(shape) for shape in meant), default=0)


def tower_working_bytes(config: VLMConfig, tiles: int, itemsize: int, flash: bool) -> int:
    """Activations of one tower block: the MLP's or the attention's, whichever is more, and the feature layers."""
    vision = config.vision
    rows = tiles * vision.num_positions
    kept = rows * vision.hidden_size * (1 + len(config.feature_layers)) * itemsize
    mlp = rows * 2 * vision.intermediate_size * itemsize
    heads = 0 if flash else tiles * vision.num_heads * vision.num_positions**2 * (FLOAT32 + itemsize)
    return kept + max(mlp, rows * 4 * vision.hidden_size * itemsize + heads)


def decoder_working_bytes(config: DecoderConfig, batch: int, tokens: int, itemsize: int, flash: bool) -> int:
    """Activations of one decoder layer over a whole prompt: the MLP's or the attention's, whichever is more."""
    rows = batch * tokens
    residual = 2 * rows * config.hidden_size * itemsize
    mlp = rows * 3 * config.intermediate_size * itemsize
    projections = rows * (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim * itemsize
    scores = 0 if flash else batch * config.num_heads * _score_bytes(tokens, itemsize)
    return residual + max(mlp, projections + scores)


def _score_bytes(tokens: int, itemsize: int) -> int:
    """Of a head: a block's weights, and the scores of this and its neighbour, which XLA may compute meanwhile."""
    sizes = [(end - start) * end for start, end in causal_blocks(tokens)]
    return max(max(pair) * itemsize + sum(pair) * FLOAT32 for pair in itertools.pairwise([0, *sizes]))
