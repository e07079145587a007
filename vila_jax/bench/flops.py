"""Floating-point operations of each stage of a request, counted from the config alone.

One multiply-add counts as two; only matrix products count (no norms, softmax, activations or rotary embedding). Causal
attention counts the visible half only, the tower's attention the full square. The head is applied to the last position
of a prompt alone.
"""

import itertools

from vila_jax.budgets.tome import ToMe
from vila_jax.budgets.tower import TowerReduction
from vila_jax.nn.config import DecoderConfig, VisionConfig, VLMConfig


def tower_flops(config: VLMConfig) -> int:
    """One tile through the patch embedding and the blocks that are built."""
    vision = config.vision
    blocks = [vision.num_positions] * config.vision_depth
    return _embedding_flops(vision) + sum(_attention_flops(vision, n) + _mlp_flops(vision, n) for n in blocks)


def reduced_tower_flops(config: VLMConfig, reduction: TowerReduction) -> int:
    """One tile through a tower in which tokens become fewer, between attention and MLP of its blocks.

    Merging adds the similarities of the tokens of two halves; the sums of the merged ones, a few thousandths of this,
    are neglected.
    """
    vision = config.vision
    patches = (vision.num_patches, *reduction.computed(vision.num_patches))
    total = _embedding_flops(vision)
    for before, after in itertools.pairwise(patches):
        classes = vision.num_positions - vision.num_patches
        total += _attention_flops(vision, before + classes) + _mlp_flops(vision, after + classes)
        if isinstance(reduction.rule, ToMe) and after < before:
            total += 2 * (before // 2) * (before - before // 2) * vision.head_dim
    return total


def _embedding_flops(vision: VisionConfig) -> int:
    return 2 * vision.num_patches * vision.patch_size**2 * 3 * vision.hidden_size


def _attention_flops(vision: VisionConfig, tokens: int) -> int:
    """Four projections, scores and weighted sums."""
    return 8 * tokens * vision.hidden_size**2 + 4 * tokens**2 * vision.hidden_size


def _mlp_flops(vision: VisionConfig, tokens: int) -> int:
    return 4 * tokens * vision.hidden_size * vision.intermediate_size


def projector_flops(config: VLMConfig, tokens: int) -> int:
    """`tokens` visual tokens through the projector."""
    return 2 * tokens * sum(i * o for i, o in itertools.pairwise(config.projector.widths))


def decoder_flops(config: DecoderConfig, tokens: int) -> int:
    """`tokens` tokens of a prompt through the decoder, and the head on the last of them."""
    pairs = sum(visible_pairs(tokens, config.sliding_window(layer)) for layer in range(config.num_layers))
    attention = 4 * config.num_heads * config.head_dim * pairs
    return 2 * tokens * layer_weights(config) + attention + 2 * config.hidden_size * config.vocab_size


def layer_weights(config: DecoderConfig) -> int:
    """Entries of the weight matrices of all decoder layers."""
    attention = 2 * config.hidden_size * (config.num_heads + config.num_kv_heads) * config.head_dim
    return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def visible_pairs(tokens: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees: every token sees itself and the `window - 1` before it, or all."""
    seen = tokens if window is None else min(window, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


def prefill_flops(config: VLMConfig, tiles: int, visual: int, text: int) -> int:
    """One prompt: `tiles` tiles, of which `visual` tokens are kept, and `text` tokens of text.

    Args:
      visual: tokens that reach the decoder. With a budget these alone are projected; without one padding and newline
        tokens make the number projected differ a little, which is neglected.
    """
    seen = tiles * tower_flops(config) + projector_flops(config, visual)
    return seen + decoder_flops(config.decoder, visual + text)
