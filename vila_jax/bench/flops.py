"""Floating-point operations of each stage of a request, counted from the config alone.

One multiply-add counts as two; only matrix products count (no norms, softmax, activations or rotary embedding). Causal
attention counts the visible half only, the tower's attention the full square. The head is applied to the last position
of a prompt alone; that the last block's queries, attention and MLP are, too, is not counted, as nobody counts it.
"""

import itertools

from vila_jax.budgets import Dropper, Step, decoder_counts, layer_tokens
from vila_jax.budgets.sparse import Sparse
from vila_jax.budgets.tome import ToMe
from vila_jax.budgets.tower import TowerReduction
from vila_jax.nn.config import DecoderConfig, VisionConfig, VLMConfig


def tower_flops(config: VLMConfig) -> int:
    """One tile through the patch embedding and the blocks that are built."""
    vision = config.vision
    blocks = [vision.num_positions] * config.vision_depth
    return embedding_flops(vision) + sum(_attention_flops(vision, n) + _mlp_flops(vision, n) for n in blocks)


def reduced_tower_flops(config: VLMConfig, reduction: TowerReduction) -> int:
    """One tile through a tower in which tokens become fewer, between attention and MLP of its blocks.

    Merging adds the similarities of the tokens of two halves; the sums of the merged ones, a few thousandths of this,
    are neglected.
    """
    vision = config.vision
    patches = (vision.num_patches, *reduction.computed(vision.num_patches))
    total = embedding_flops(vision)
    for before, after in itertools.pairwise(patches):
        classes = vision.num_positions - vision.num_patches
        total += _attention_flops(vision, before + classes) + _mlp_flops(vision, after + classes)
        if isinstance(reduction.rule, ToMe) and after < before:
            total += 2 * (before // 2) * (before - before // 2) * vision.head_dim
    return total


def embedding_flops(vision: VisionConfig) -> int:
    """The patch embedding of a tile."""
    return 2 * vision.num_patches * vision.patch_size**2 * 3 * vision.hidden_size


def _attention_flops(vision: VisionConfig, tokens: int) -> int:
    """Four projections, scores and weighted sums."""
    return 8 * tokens * vision.hidden_size**2 + 4 * tokens**2 * vision.hidden_size


def _mlp_flops(vision: VisionConfig, tokens: int) -> int:
    return 4 * tokens * vision.hidden_size * vision.intermediate_size


def tower_pair_flops(config: VLMConfig, reduction: TowerReduction | None = None) -> int:
    """Scores and weighted sums alone, of a tile in all blocks; a part of the above."""
    vision = config.vision
    if reduction is None:
        before = [vision.num_positions] * config.vision_depth
    else:
        patches = (vision.num_patches, *reduction.computed(vision.num_patches))
        before = [own + vision.num_positions - vision.num_patches for own in patches[:-1]]
    return sum(4 * tokens**2 * vision.hidden_size for tokens in before)


def projector_flops(config: VLMConfig, tokens: int) -> int:
    """`tokens` visual tokens through the projector."""
    return 2 * tokens * sum(i * o for i, o in itertools.pairwise(config.projector.widths))


def decoder_flops(config: DecoderConfig, text: int, visual: int = 0, step: Step | None = None) -> int:
    """A prompt of `text` and `visual` tokens through the decoder, and the head on its last token.

    Args:
      step: of a budget inside the decoder; what its scores cost is counted.
    """
    each = [text + own for own in layer_tokens(step, config.num_layers, visual)]
    pairs = [visible_pairs(n, config.sliding_window(layer)) for layer, n in enumerate(each)]
    scores = 0
    rule = None if step is None else step.decoder_method
    if step is not None and isinstance(rule, Sparse):
        seen = text + decoder_counts(step, visual, "the prompt")[-1] + 1  # itself
        pairs[rule.layer :] = [n * seen for n in each[rule.layer :]]
        scores = sum(scoring_flops(config, n, 1, keys=False) for n in each[rule.layer :])
    if isinstance(rule, Dropper):
        raters = text if rule.asks_question else 1
        before = [each[cut - 1] for cut in rule.cuts(config.num_layers)]
        scores = sum(scoring_flops(config, n, raters, keys=True) for n in before)
    linear = 2 * sum(each) * (layer_weights(config) // config.num_layers)
    attention = 4 * config.num_heads * config.head_dim * sum(pairs)
    return linear + attention + scores + 2 * config.hidden_size * config.vocab_size


def scoring_flops(config: DecoderConfig, tokens: int, raters: int, *, keys: bool) -> int:
    """Rows of attention that `raters` tokens pay to `tokens`.

    Args:
      keys: whether queries and keys are computed once more for them.
    """
    once_more = raters * config.num_heads + tokens * config.num_kv_heads if keys else 0
    return 2 * config.head_dim * (config.hidden_size * once_more + raters * tokens * config.num_heads)


def layer_weights(config: DecoderConfig) -> int:
    """Entries of the weight matrices of all decoder layers."""
    attention = 2 * config.hidden_size * (config.num_heads + config.num_kv_heads) * config.head_dim
    return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def visible_pairs(tokens: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees: every token sees itself and the `window - 1` before it, or all."""
    seen = tokens if window is None else min(window, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


def prefill_flops(config: VLMConfig, tiles: int, visual: int, text: int, step: Step | None = None) -> int:
    """One prompt: `tiles` tiles, of which `visual` tokens are kept, and `text` tokens of text.

    Args:
      visual: tokens that reach the decoder. With a budget these alone are projected; without one padding and newline
        tokens make the number projected differ a little, which is neglected.
      step: of a budget inside the decoder.
    """
    seen = tiles * tower_flops(config) + projector_flops(config, visual)
    return seen + decoder_flops(config.decoder, text, visual, step)
