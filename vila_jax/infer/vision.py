"""From the tiles of a batch's pictures to the table of visual tokens that its prompts point into.

Two programs, because they vary with different things: the tower, by far the slower to compile, is one program for all
budgets and prompts, and neither knows anything of the text.

    encode_tiles    pixels -> features of every patch, and what the budget scores with     per number of tiles
    visual_tokens   put scales together, merge windows, select, project, pool              per budget

A projector that merges windows of patches makes *cells* of them, one visual token each; without one a cell is a patch.
Budgets choose among cells.

What varies from picture to picture (tiles, padding, order of the tokens) enters as arrays and compiles nothing.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets import Budget, Plan, Selection, required_intermediates, select_tokens
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.means import mean_rows
from vila_jax.nn.projector import pool_windows
from vila_jax.nn.scales import compose, compose_scores
from vila_jax.nn.vit import Intermediates


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static part of a batch.

    Attributes:
      config: the model.
      dtype: of the computation.
      budget: how visual tokens are chosen; None keeps all of them.
      slots: with a budget, `K`, the token slots of every picture.
    """

    config: VLMConfig
    dtype: str
    budget: Budget | None = None
    slots: int = 0

    @property
    def roles(self) -> dict[str, str]:
        """What the budget reads of the tower: `{role: name of an intermediate}`."""
        if self.budget is None:
            return {}
        return required_intermediates(self.budget, self.config.vision, self.config.vision_depth)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of `roles`, each once."""
        return tuple(dict.fromkeys(self.roles.values()))


class Scales(NamedTuple):
    """How the blocks of every picture are put together from the tower's tiles (NumPy or JAX arrays).

    Attributes:
      tiles: the tower's tiles of every picture, as rows of the batch's, `[I, Q]`.
      index: see `vila_jax.nn.scales`, `[I, B, P, S, W]`.
    """

    tiles: Int[Any, "I Q"]
    index: Int[Any, "I B P S W"]


class Pictures(NamedTuple):
    """With a budget, what is known of every picture of a batch beforehand (NumPy or JAX arrays).

    Attributes:
      tiles: the tiles (with scales, the blocks) of every picture, as rows of the batch's, `[I, P]`.
      plan: stacked plans.
    """

    tiles: Int[Any, "I P"]
    plan: Plan


class Encoded(NamedTuple):
    """What the tower says of all tiles of a batch: features, and intermediates by name."""

    features: Float[Array, "R N Dv"]
    intermediates: Intermediates


class VisualTokens(NamedTuple):
    """The table of visual tokens that prompts point into, and with a budget which of its rows are used."""

    table: Float[Array, "V D"]
    valid: Bool[Array, " V"] | None


def encode_tiles(
    graphdef: nnx.GraphDef, state: nnx.State, pixels: Float[Array, "R 3 h w"], *, dtype: str, wanted: tuple[str, ...]
) -> Encoded:
    """Runs the tower, in `dtype`, over the tiles of all pictures; `wanted` names intermediates."""
    model = nnx.merge(graphdef, state)

    def encode(tiles: Float[Array, "r 3 h w"]) -> Encoded:
        return Encoded(*model.encode(tiles.astype(dtype), wanted))

    if jax.default_backend() != "cpu":
        return encode(pixels)
    # One tile keeps a CPU busy; with five, up to half the time goes into fresh memory for their attention scores.
    by_tile = jax.lax.map(lambda tile: encode(tile[None]), pixels)
    return jax.tree.map(lambda x: x[:, 0], by_tile)


def block_features(encoded: Encoded, scales: Scales | None) -> Float[Array, "R N Dv"]:
    """What the projector reads: the features of the tiles, or of the blocks of all pictures put together from them."""
    if scales is None:
        return encoded.features
    blocks = compose(encoded.features, scales.tiles, scales.index)
    return blocks.reshape(-1, *blocks.shape[2:])


def visual_tokens(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    encoded: Encoded,
    scales: Scales | None,
    pictures: Pictures | None,
    pools: Int[Any, "P W"] | None,
    *,
    spec: Spec,
) -> VisualTokens:
    """Selects and projects.

    All tokens:     tile after tile (block after block), `R x M` rows, then the newline (if the model has one), then
                    the pooled tokens of videos: means of the rows that `pools` names, -1 being none.
    With a budget:  picture after picture, `I x K` rows. Cells are chosen before they are projected, each by itself, so
                    that the result is the same and only the chosen ones are projected.
    """
    model = nnx.merge(graphdef, state)
    cells = model.merge(block_features(encoded, scales))
    if pictures is None:
        visual = model.project(cells)
        table = model.with_newline(visual.reshape(-1, visual.shape[-1]))
        if pools is not None:
            table = jnp.concatenate([table, mean_rows(table, pools).astype(table.dtype)])
        return VisualTokens(table, None)
    chosen = select(encoded, scales, pictures, spec)
    index, per_tile = jnp.maximum(chosen.indices, 0), cells.shape[1]
    tile = jnp.take_along_axis(pictures.tiles, index // per_tile, axis=1)
    visual = model.project(cells[tile, index % per_tile])
    return VisualTokens(visual.reshape(-1, visual.shape[-1]), chosen.valid.reshape(-1))


def selection(
    graphdef: nnx.GraphDef, state: nnx.State, encoded: Encoded, scales: Scales | None, pictures: Pictures, *, spec: Spec
) -> Selection:
    """The cells of every picture that the budget keeps; reads no weights."""
    del graphdef, state
    return select(encoded, scales, pictures, spec)


def select(encoded: Encoded, scales: Scales | None, pictures: Pictures, spec: Spec) -> Selection:
    """The cells of every picture that the budget keeps, by attention summed over heads and over a cell's patches."""
    assert spec.budget is not None
    by_picture = {
        role: _cell_scores(encoded.intermediates[name], scales, spec.config.projector.window)[pictures.tiles]
        for role, name in spec.roles.items()
    }
    return select_tokens(spec.budget, by_picture, pictures.plan, spec.slots)


def _cell_scores(scores: Float[Array, "R N P"], scales: Scales | None, window: int) -> Float[Array, "Q M"]:
    """Scores of patches by head -> of cells of the tiles (with scales, of the `Q` blocks)."""
    if scales is not None:
        blocks = compose_scores(scores, scales.tiles, scales.index)
        scores = blocks.reshape(-1, *blocks.shape[2:])
    return pool_windows(jnp.sum(scores, axis=1), window)
