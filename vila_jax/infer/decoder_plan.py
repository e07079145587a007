"""What the host knows of a budget inside the decoder: how many tokens a row has behind each cut, and static sizes."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vila_jax.budgets import Dropper, Step, decoder_counts
from vila_jax.text.slots import cache_bucket, prompt_bucket


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The static part: where a prompt is shortened, and to what.

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


class Kept(NamedTuple):
    """Counts behind each cut (NumPy or JAX arrays); rows that are padding keep nothing.

    Attributes:
      tokens: visual tokens that are left, `[S, B]`.
      pool: dropped tokens that are merged, `[S, B]`.
      merged: tokens that are made of them, part of those that are left, `[S, B]`.
    """

    tokens: Int[Any, "S B"]
    pool: Int[Any, "S B"]
    merged: Int[Any, "S B"]


@dataclasses.dataclass(frozen=True)
class DecoderPlan:
    """A schedule, the counts of a batch, and the length of the cache of every layer."""

    schedule: Schedule
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
      step: a step that drops tokens inside the decoder.
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
    rule = step.decoder_method
    assert isinstance(rule, Dropper)
    cuts = rule.cuts(depth)
    where = "the prompt" if len(rows) == 1 else "prompt {}"
    tokens = np.zeros((len(cuts), batch), np.int32)
    for row, (_, visual) in enumerate(rows):
        tokens[:, row] = decoder_counts(step, visual, where.format(row))
    visual = np.asarray([visual for _, visual in rows] + [0] * (batch - len(rows)), np.int32)
    before = np.concatenate([visual[None], tokens[:-1]])
    pool, merged = np.vectorize(rule.merging, otypes=[np.int32, np.int32])(before, tokens)
    longest = (tokens[:, : len(rows)] + np.asarray([text for text, _ in rows], np.int32)[None]).max(axis=1)
    lengths = tuple(prompt_bucket(int(n), limit) for n in longest)
    caches = [max(cache_bucket(int(n) + new_tokens, limit), length) for n, length in zip(longest, lengths, strict=True)]
    layers = np.searchsorted(cuts, np.arange(depth), side="right")
    schedule = Schedule(
        rule,
        cuts,
        lengths,
        pools=tuple(prompt_bucket(int(most), limit) if most else 0 for most in pool.max(axis=1)),
        raters=min(prompt_bucket(max(question, 1), limit), full[0]) if rule.asks_question else 1,
    )
    return DecoderPlan(schedule, Kept(tokens, pool, merged), tuple((full[1], *caches)[i] for i in layers))
