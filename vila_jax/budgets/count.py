"""How many tokens a budget keeps. Nothing else in the package counts them."""

from vila_jax.budgets.spec import Step
from vila_jax.errors import BudgetError
from vila_jax.vision.geometry import TileGeometry


def total_tokens(step: Step, geometry: TileGeometry) -> int:
    """Tokens that a step leaves of a picture of this geometry, newline tokens not counted.

    A fraction is taken of all patches of the picture's tiles, padding included, and truncated in double precision
    (`int(P * N * keep)`, as HiRED does); the result is at least 1 and at most the number of patches that the method
    may keep. A number of tokens is met exactly.

    For `hired` with `variant=code` this is an upper bound: like its reference, that variant loses roundings and spends
    tokens on padding.

    Raises:
      BudgetError: more tokens are asked for than the picture has.
    """
    rule = step.token_method
    return rule.total(_asked(step, geometry, int(rule.candidates(geometry).sum())), geometry)


def most_tokens(step: Step, geometry: TileGeometry) -> int:
    """Tokens that a step of the stage `picture` pays for, of a picture that has this geometry without it.

    As many as `total_tokens` of a method that may keep any real patch.

    Raises:
      BudgetError: more tokens are asked for than the picture has.
    """
    return _asked(step, geometry, int(geometry.real().sum()))


def _asked(step: Step, geometry: TileGeometry, available: int) -> int:
    if isinstance(step.keep, int):
        _check_available(step.keep, available, f"a picture of {geometry.num_tiles} tile(s)")
        return step.keep
    return max(1, min(int(geometry.num_patches * step.keep), available))


def capacity(step: Step, max_tiles: int, patches_per_tile: int) -> int:
    """`K`, the static number of token slots of a tile bucket.

    At least `total_tokens` of any picture of at most `max_tiles` tiles.

    Raises:
      BudgetError: more tokens are asked for than `max_tiles` tiles have patches.
    """
    patches = max_tiles * patches_per_tile
    if isinstance(step.keep, int):
        _check_available(step.keep, patches, f"{max_tiles} tile(s)")
        return step.keep
    return max(1, int(patches * step.keep))


def _check_available(asked: int, available: int, what: str) -> None:
    if asked > available:
        raise BudgetError(
            f"the budget asks for {asked} visual tokens, but {what} has only {available}",
            fix=f"Ask for at most {available} tokens, or for a fraction such as 0.5.",
        )
