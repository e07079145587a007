"""What the host knows of a budget inside the decoder: how many tokens a row has behind each cut, and static sizes."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vila_jax.budgets import Dropper, Step, decoder_counts
from vila_jax.budgets.sparse import Sparse
from vila_jax.text.slots import cache_bucket, prompt_bucket


@dataclasses.dataclass(frozen=True)
class Stages:
    """What decoding has to know of a schedule, static.

    Attributes:
      cuts: the layers where something changes.
      renumbered: whether positions were counted anew behind them.
      room: keys that are seen of the layers behind the cut, with sparse attention; 0 for all.
    """

    cuts: tuple[int, ...] = ()
    renumbered: bool = False
    room: int = 0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Where prompts are shortened, and to what, static.

    Attributes:
      rule: the method.
      cuts: the layers before which tokens leave.
      lengths: padded tokens of a row behind each cut.
      pools: room for the dropped tokens that are merged at each; 0 for none.
      raters: room for the tokens that rate the visual ones.
    """

    rule: Dropper
    cuts: tuple[int, ...]
    lengths: tuple[int, ...]
    pools: tuple[int, ...]
    raters: int

    @property
    def renumbered(self) -> bool:
        """Whether positions are counted anew behind a cut."""
        return self.rule.positions == "renumbered"

    @property
    def stages(self) -> Stages:
        return Stages(self.cuts, self.renumbered)


@dataclasses.dataclass(frozen=True)
class SparseSchedule:
    """From which layer on attention is sparse, static.

    Attributes:
      layer: the first.
      room: keys that the queries of a prompt see.
      cache_room: keys that a generated token sees.
    """

    layer: int
    room: int
    cache_room: int

    @property
    def stages(self) -> Stages:
        return Stages((self.layer,), room=self.cache_room)


class Kept(NamedTuple):
    """Counts behind each cut (NumPy or JAX arrays); rows that are padding keep nothing.

    Attributes:
      tokens: visual tokens that are left, or that attention chooses, `[S, B]`.
      pool: dropped tokens that are merged, `[S, B]`.
      merged: tokens that are made of them, part of those that are left, `[S, B]`.
    """

    tokens: Int[Any, "S B"]
    pool: Int[Any, "S B"]
    merged: Int[Any, "S B"]


@dataclasses.dataclass(frozen=True)
class DecoderPlan:
    """A schedule, the counts of a batch, and the length of the cache of every layer."""

    schedule: Schedule | SparseSchedule
    kept: Kept
    cache_lengths: tuple[int, ...]


def plan_decoder(
    step: Step,
    depth: int,
    rows: Sequence[tuple[int, int]],
    *,
    batch: int,
    full: tuple[int, int],
    question: int,
    new_tokens: int,
    limit: int,
) -> DecoderPlan:
    """Plans a batch.

    Args:
      step: a step inside the decoder.
      depth: layers of the decoder.
      rows: text and visual tokens of every prompt.
      batch: rows, padding included.
      full: padded length of the prompts, and length of the caches, in front of the first cut.
      question: the most tokens of text behind the last picture of a row.
      new_tokens: that each row may generate.
      limit: the model's context.

    Raises:
      BudgetError: a layer does not exist, or a row has fewer visual tokens than are asked for.
    """
    where = "the prompt" if len(rows) == 1 else "prompt {}"
    counts = [decoder_counts(step, visual, where.format(row)) for row, (_, visual) in enumerate(rows)]
    tokens = np.zeros((len(counts[0]), batch), np.int32)
    tokens[:, : len(rows)] = np.transpose(counts)
    longest = (tokens[:, : len(rows)] + np.asarray([text for text, _ in rows], np.int32)[None]).max(axis=1).tolist()
    lengths = tuple(min(prompt_bucket(n, limit), full[0]) for n in longest)
    caches = [max(cache_bucket(n + new_tokens, limit), length) for n, length in zip(longest, lengths, strict=True)]
    rule = step.decoder_method
    if isinstance(rule, Sparse):
        schedule = SparseSchedule(rule.layer, lengths[0], min(caches[0], full[1]))
        return DecoderPlan(schedule, Kept(tokens, 0 * tokens, 0 * tokens), (full[1],) * depth)
    assert isinstance(rule, Dropper)
    cuts = rule.cuts(depth)
    visual = np.asarray([visual for _, visual in rows] + [0] * (batch - len(rows)), np.int32)
    before = np.concatenate([visual[None], tokens[:-1]])
    pool, merged = np.vectorize(rule.merging, otypes=[np.int32, np.int32])(before, tokens)
    pools = tuple(prompt_bucket(int(most), limit) if most else 0 for most in pool.max(axis=1))
    raters = min(prompt_bucket(max(question, 1), limit), full[0]) if rule.asks_question else 1
    layers = np.searchsorted(cuts, np.arange(depth), side="right")
    cache_lengths = tuple((full[1], *caches)[i] for i in layers)
    return DecoderPlan(Schedule(rule, cuts, lengths, pools, raters), Kept(tokens, pool, merged), cache_lengths)
