"""The floating-point operations that a step of a stage needs, from the config and from what is trained.

For every product that the forward pass makes (1), the backward pass makes up to two more: one for the gradient of its
input, where something before it is trained (1), and one for that of its weight, where the weight is (1):

    frozen tower                                1    2 N per token: nobody asks for its gradients
    frozen decoder under a trained projector    2    4 N: gradients of activations go through it
    low-rank additions                          2    4 N, and 3 for the additions themselves
    trained                                     3    6 N
    attention (no weights)                      3    where gradients go through it, else 1

A multiply-add counts as two. Only matrix products count, the head among them, on every token. Counted is what the batch
needs and not what is computed for it: no padding, in attention the pairs that see each other within a sample, nothing
that is computed again (remat, the scores of a chunk). Left out: rating tokens under a budget, scorers, label heads.
"""

import dataclasses
import itertools
from collections.abc import Collection, Sequence

from train.lora import Lora
from train.metrics.counts import Counts
from vila_jax.bench import flops
from vila_jax.budgets.tower import TowerReduction
from vila_jax.nn.config import DecoderConfig, VisionConfig, VLMConfig


@dataclasses.dataclass(frozen=True)
class StageFlops:
    """What a step needs, for each thing that its batch holds.

    Attributes:
      tile: a tile through the tower.
      visual: a visual token through the projector.
      token: a token through the linear layers of the decoder and its head.
      pair: a query and a key of one layer.
      windows: of the layers.
    """

    tile: int
    visual: int
    token: int
    pair: int
    windows: tuple[int | None, ...]

    def __call__(self, counts: Counts) -> int:
        """FLOPs of a batch, forward and backward."""
        pairs = sum(
            self.windows.count(window) * flops.visible_pairs(length, window)
            for window in set(self.windows)
            for length in counts.lengths
        )
        return self.tile * counts.tiles + self.visual * counts.visual + self.token * counts.tokens + self.pair * pairs


def stage_flops(
    config: VLMConfig,
    trained: Collection[str],
    *,
    lora: Lora | None = None,
    reduction: TowerReduction | None = None,
    answers: bool = True,
) -> StageFlops:
    """The FLOPs of a stage.

    Args:
      trained: groups, see `train/weights.py`.
      lora: low-rank additions, to groups that are trained no further.
      reduction: of a budget inside the tower; other budgets show in the counts of a batch.
      answers: whether the decoder is asked at all; False where only patch labels are learned.
    """
    low_rank = () if lora is None else lora.groups
    rank = 0 if lora is None else lora.rank
    upstream = "tower" in trained or "projector" in trained
    decoder = config.decoder
    reached, whole = upstream or "decoder" in trained, "decoder" in trained and "decoder" not in low_rank
    products = 1 + reached + whole
    additions = 3 * rank * _low_rank_entries(decoder_linears(decoder)) if "decoder" in low_rank else 0
    linear = flops.layer_weights(decoder) + decoder.hidden_size * decoder.vocab_size
    return StageFlops(
        tile=_tile_flops(config, trained, rank if "tower" in low_rank else None, reduction),
        visual=answers * _visual_flops(config, trained),
        token=answers * 2 * (products * linear + decoder.num_layers * additions),
        pair=answers * (3 if reached else 1) * 4 * decoder.num_heads * decoder.head_dim,
        windows=tuple(decoder.sliding_window(layer) for layer in range(decoder.num_layers)),
    )


def _tile_flops(config: VLMConfig, trained: Collection[str], rank: int | None, reduction: TowerReduction | None) -> int:
    """A tile through the tower.

    Args:
      rank: of its low-rank additions; None without.
    """
    vision = config.vision
    total = flops.tower_flops(config) if reduction is None else flops.reduced_tower_flops(config, reduction)
    if "tower" not in trained:
        return total
    embedding, pairs = flops.embedding_flops(vision), flops.tower_pair_flops(config, reduction)
    linear = total - embedding - pairs
    if rank is None:
        return 2 * embedding + 3 * linear + 3 * pairs
    tokens = linear // (2 * sum(i * o for i, o in tower_linears(vision)))  # of all blocks
    return embedding + 2 * linear + 3 * pairs + 3 * 2 * tokens * rank * _low_rank_entries(tower_linears(vision))


def _visual_flops(config: VLMConfig, trained: Collection[str]) -> int:
    """A visual token through the projector."""
    tower, own = "tower" in trained, "projector" in trained
    norm_first = config.projector.norms and len(config.projector.widths) > 2  # none before the last layer
    total = 0
    for index, (i, o) in enumerate(itertools.pairwise(config.projector.widths)):
        reached = tower or (own and (index > 0 or norm_first))
        total += 2 * i * o * (1 + reached + own)
    return total


def decoder_linears(config: DecoderConfig) -> list[tuple[int, int]]:
    """Input and output widths of the linear layers of a block."""
    d, f, queries, keys = (
        config.hidden_size,
        config.intermediate_size,
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    )
    return [(d, queries), (d, keys), (d, keys), (queries, d), (d, f), (d, f), (f, d)]


def tower_linears(config: VisionConfig) -> list[tuple[int, int]]:
    """Likewise, of the tower."""
    d, f = config.hidden_size, config.intermediate_size
    attention = [(d, 3 * d), (d, d)] if config.kind == "intern" else [(d, d)] * 4
    return [*attention, (d, f), (f, d)]


def _low_rank_entries(linears: Sequence[tuple[int, int]]) -> int:
    """Entries of additions of rank 1."""
    return sum(i + o for i, o in linears)
