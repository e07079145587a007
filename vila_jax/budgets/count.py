"""How many tokens a budget keeps. Nothing else in the package counts them."""

import itertools

import numpy as np

from vila_jax.budgets.decoder_method import Dropper
from vila_jax.budgets.spec import Step
from vila_jax.errors import BudgetError
from vila_jax.vision.geometry import TileGeometry


def tokens_of_tile(tower: Step | None, patches: int) -> int:
    """Tokens that a step inside the tower leaves of every tile of `patches`: all of them without one.

    A number of tokens counts those of *one* tile here.

    Raises:
      BudgetError: more tokens are asked for than a tile has patches.
    """
    return patches if tower is None else _share(tower, patches, "a tile")


def total_tokens(step: Step, geometry: TileGeometry, tower: Step | None = None) -> int:
    """Tokens that a step leaves of a picture of this geometry, newline tokens not counted.

    A fraction is taken of all patches of the picture's tiles, padding included (or of all tokens that `tower` leaves of
    them), and truncated in double precision (`int(P * N * keep)`, as HiRED does); the result is at least 1 and at most
    the number of patches that the method may keep. A number of tokens is met exactly.

    For `hired` with `variant=code` this is an upper bound: like its reference, that variant loses roundings and spends
    tokens on padding. So it is where `tower` merges a tile's padding, or leaves what passes a threshold.

    Args:
      step: what chooses the tokens of a picture.
      tower: the step inside the tower; `step` itself where nothing chooses among what it leaves.

    Raises:
      BudgetError: more tokens are asked for than the picture has.
    """
    rule, left = step.token_method, tokens_of_tile(tower, geometry.patches_per_tile)
    available = int(np.minimum(rule.candidates(geometry).sum(axis=1), left).sum())
    if step == tower:
        return available
    return rule.total(_asked(step, geometry, available, geometry.num_tiles * left), geometry)


def most_tokens(step: Step, geometry: TileGeometry) -> int:
    """Tokens that a step of the stage `picture` pays for, of a picture that has this geometry without it.

    As many as `total_tokens` of a method that may keep any real patch.

    Raises:
      BudgetError: more tokens are asked for than the picture has.
    """
    return _asked(step, geometry, int(geometry.real().sum()), geometry.num_patches)


def _asked(step: Step, geometry: TileGeometry, available: int, patches: int) -> int:
    if isinstance(step.keep, int):
        _check_available(step.keep, available, f"a picture of {geometry.num_tiles} tile(s)")
        return step.keep
    return max(1, min(int(patches * step.keep), available))


def capacity(step: Step, max_tiles: int, patches_per_tile: int, tower: Step | None = None) -> int:
    """`K`, the static number of token slots of a tile bucket.

    At least `total_tokens` of any picture of at most `max_tiles` tiles.

    Raises:
      BudgetError: more tokens are asked for than `max_tiles` tiles have patches.
    """
    tokens = max_tiles * tokens_of_tile(tower, patches_per_tile)
    return tokens if step == tower else _share(step, tokens, f"{max_tiles} tile(s)")


def _share(step: Step, tokens: int, what: str) -> int:
    """What a step keeps of so many tokens."""
    if isinstance(step.keep, int):
        _check_available(step.keep, tokens, what)
        return step.keep
    return max(1, int(tokens * step.keep))


def decoder_counts(step: Step, visual: int, where: str) -> tuple[int, ...]:
    """Visual tokens that a row of `visual` has behind each stage of a step inside the decoder.

    A fraction is truncated in double precision and leaves at least one token; a number of tokens is met exactly. A row
    without visual tokens stays as it is.

    Args:
      where: names the row in errors.

    Raises:
      BudgetError: the row has fewer visual tokens than are asked for.
    """
    if isinstance(step.keep, int):
        if visual:
            _check_available(step.keep, visual, where)
        last, part = step.keep, step.keep / max(visual, step.keep)
    else:
        last, part = max(1, int(visual * step.keep)), step.keep
    return tuple(min(visual, max(last, int(visual * ratio))) for ratio in step.decoder_method.ratios(part))


def layer_tokens(step: Step | None, depth: int, visual: int) -> tuple[int, ...]:
    """Visual tokens that each of the `depth` layers of a decoder reads of a row that has `visual`.

    Raises:
      BudgetError: a layer does not exist, or there are fewer visual tokens than are asked for.
    """
    rule = None if step is None else step.decoder_method
    if step is None or not isinstance(rule, Dropper):
        return (visual,) * depth
    cuts = (0, *rule.cuts(depth), depth)
    counts = (visual, *decoder_counts(step, visual, "the prompt"))
    return tuple(n for n, (start, end) in zip(counts, itertools.pairwise(cuts), strict=True) for _ in range(start, end))


def _check_available(asked: int, available: int, what: str) -> None:
    if asked > available:
        raise BudgetError(
            f"the budget asks for {asked} visual tokens, but {what} has only {available}",
            fix=f"Ask for at most {available} tokens, or for a fraction such as 0.5.",
        )
