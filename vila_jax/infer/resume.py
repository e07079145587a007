"""Rows that go on from what was read before: what they are called, and what is left to lay out."""

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Int

from vila_jax.budgets import Budget
from vila_jax.infer.counts import Counts
from vila_jax.infer.decode import Progress
from vila_jax.infer.layout import Layout, Planner, Request, images_of
from vila_jax.infer.prefill import Before
from vila_jax.infer.prefixes import Found, Passage, PrefixCache, Visual
from vila_jax.text.slots import cache_bucket, prompt_bucket


def keeps_prefixes(planner: Planner, budget: Budget | None) -> bool:
    """Whether keys and values of a row are the same whatever follows; see `vila_jax.infer.prefixes`."""
    within = budget is not None and budget.step("decoder") is not None
    return not within and planner.config.vlm.decoder.rope.scaling != "dynamic"


def passage_of(planner: Planner, request: Request, budget: Budget | None, new_tokens: int) -> tuple[Passage, Counts]:
    """A prompt piece by piece, and its token counts.

    Raises:
      VilaError: whatever `Planner.layout` refuses.
    """
    [row], _ = planner.rows([request], budget, new_tokens)
    effective = planner.effective(budget)
    visual = [
        Visual(tuple((image.digest, image.geometry) for image in images_of(medium)), effective, number)
        for medium, placeholders in zip(request.media, row.placeholders, strict=True)
        for number in range(placeholders)
    ]
    pieces = iter(zip(visual, row.slots, row.spans, strict=True))
    placeholder = planner.config.image_token_id
    placed = [next(pieces) if token == placeholder else (int(token), 1, 1) for token in request.token_ids]
    names, entries, positions = (tuple(column) for column in zip(*placed, strict=True))
    return Passage(names, entries, positions if planner.keeps_positions(budget) else None), row.count


def lay_out_rest(
    planner: Planner, request: Request, budget: Budget | None, new_tokens: int, found: Found
) -> Layout | None:
    """Lays out what is new of a prompt; None where reading it all is as little work.

    Args:
      found: what is known of it.
    """
    known = sum(isinstance(name, Visual) and not name.number for name in found.names)
    rest = Request(request.token_ids[len(found.names) :], request.media[known:])
    layout = planner.layout([rest], budget, new_tokens)
    limit, width = planner.config.context_length, layout.prompts.token_ids.shape[1]
    whole = sum(found.entries) + layout.counts[0].prompt
    if width >= prompt_bucket(whole, limit):
        return None
    length = max(found.length, cache_bucket(whole + new_tokens, limit))
    return dataclasses.replace(layout, cache_lengths=(length,) * len(layout.cache_lengths))


@dataclasses.dataclass(frozen=True)
class Keeper:
    """Keeps a row when its run is over: the `OnEnd` of `vila_jax.infer.run`.

    Attributes:
      prefixes: where to.
      planned: the prompt.
      known: entries of the cache that its first pieces take, which were read before.
      source: of the other pieces, laid out; see `Prompts`.
    """

    prefixes: PrefixCache
    planned: Passage
    known: tuple[int, ...]
    source: Int[np.ndarray, " T"]

    def __call__(self, progress: Progress, valid: Bool[Array, " V"] | None, tokens: list[list[int]]) -> None:
        used = (*self.known, *self._used(self.planned.entries[len(self.known) :], valid))
        row = dataclasses.replace(self.planned, entries=used)
        answered = int(progress.lengths[0]) - sum(used)  # all new tokens but the last are in the cache
        self.prefixes.keep(row.followed_by(tokens[0][:answered]), progress.cache)

    def _used(self, planned: tuple[int, ...], valid: Bool[Array, " V"] | None) -> tuple[int, ...]:
        """What pieces really take: a budget may leave slots unused, which the prefill has closed up."""
        if valid is None:
            return planned
        used = np.where(self.source >= 0, np.asarray(valid)[np.maximum(self.source, 0)], True)
        ends = np.cumsum(planned, dtype=int)
        return tuple(int(used[end - size : end].sum()) for end, size in zip(ends, planned, strict=True))


def resume(
    planner: Planner, request: Request, budget: Budget | None, new_tokens: int, prefixes: PrefixCache
) -> tuple[Layout, Before | None, Keeper]:
    """Lays out what is new of a prompt, or all of it; with the counts of all of it.

    Returns:
      The layout, what was read before, and what keeps the row.

    Raises:
      VilaError: whatever `Planner.layout` refuses; or the prefixes are those of another model.
    """
    prefixes.belong_to(planner)
    planned, count = passage_of(planner, request, budget, new_tokens)
    found = prefixes.find(planned)
    layout = None if found is None else lay_out_rest(planner, request, budget, new_tokens, found)
    if found is None or layout is None:
        layout = planner.layout([request], budget, new_tokens)
        return layout, None, Keeper(prefixes, planned, (), layout.prompts.source[0])
    layout = dataclasses.replace(layout, counts=[dataclasses.replace(count, cached=sum(found.entries))])
    return layout, found.before, Keeper(prefixes, planned, found.entries, layout.prompts.source[0])
