"""How much remains: the config of the pruned network. All layers get the same sizes, so that a config can say them."""

import dataclasses
import math

from vila_jax.errors import ConfigError
from vila_jax.nn.config import DecoderConfig, VisionConfig, VLMConfig


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """Fractions to remove, each in [0, 1).

    Attributes:
      ffn: of the FFN channels of the decoder, and of the tower unless `vision_ffn` says otherwise.
      vision_ffn: of the FFN channels of the tower.
      heads: of the key/value heads of the decoder, each with the query heads that share it. The tower keeps its heads:
        CLIP, SigLIP and InternViT have no `head_dim` in their configs, a head is the width divided by their number.
    """

    ffn: float = 0.0
    vision_ffn: float | None = None
    heads: float = 0.0


def remaining(config: VLMConfig, sparsity: Sparsity, *, divides_width: bool = False) -> VLMConfig:
    """The config of the pruned network.

    Args:
      config: of the source.
      divides_width: whether the number of heads has to divide the decoder's width although `head_dim` is given, as
        transformers' `LlamaConfig` demands.

    Raises:
      ConfigError: a fraction out of range, one that removes nothing, or a number of heads that no config can say.
    """
    vision_ffn = sparsity.ffn if sparsity.vision_ffn is None else sparsity.vision_ffn
    decoder = dataclasses.replace(
        _with_heads(config.decoder, sparsity.heads, divides_width),
        intermediate_size=_kept(config.decoder.intermediate_size, sparsity.ffn, "ffn", "FFN channels"),
    )
    vision: VisionConfig = dataclasses.replace(
        config.vision,
        intermediate_size=_kept(config.vision.intermediate_size, vision_ffn, "vision_ffn", "FFN channels"),
    )
    return dataclasses.replace(config, decoder=decoder, vision=vision)


def _kept(count: int, fraction: float, name: str, what: str) -> int:
    """What remains of `count`; at least one, because the fraction is below 1."""
    if not 0 <= fraction < 1:
        raise ConfigError(
            f"expected a fraction to remove, from 0 up to but without 1, got {fraction}",
            where=name,
            fix="0.5 removes one half.",
        )
    removed = math.floor(count * fraction * (1 + 1e-9))  # 0.1 of 30 is 3, whatever binary fractions make of it
    if fraction > 0 and removed == 0:
        fix = f"The smallest fraction that removes one is {1 / count:.3g}; 0 removes none."
        raise ConfigError(f"{fraction} of {count} {what} is less than one", where=name, fix=fix)
    return max(count - removed, 1)


def _with_heads(decoder: DecoderConfig, fraction: float, divides_width: bool) -> DecoderConfig:
    groups = _kept(decoder.num_kv_heads, fraction, "heads", "key/value heads")
    shared = decoder.num_heads // decoder.num_kv_heads
    if groups < decoder.num_kv_heads and divides_width and decoder.hidden_size % (groups * shared):
        possible = [n for n in range(1, decoder.num_kv_heads) if decoder.hidden_size % (n * shared) == 0]
        fractions = ", ".join(f"{1 - n / decoder.num_kv_heads:.4g} ({n * shared} heads)" for n in reversed(possible))
        raise ConfigError(
            f"{groups * shared} heads do not divide the width of {decoder.hidden_size}, which transformers asks of "
            "every Llama, head_dim given or not",
            where="heads",
            fix=f"Possible: {fractions}." if fractions else "Leave the heads alone.",
        )
    return dataclasses.replace(decoder, num_kv_heads=groups, num_heads=groups * shared)
