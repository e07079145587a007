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

from vila_jax.budgets import Plan, Selection, Step, required_intermediates, select_tokens
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.means import mean_rows
from vila_jax.nn.projector import pool_windows
from vila_jax.nn.scales import compose, compose_scores
from vila_jax.nn.vit import Intermediates
from vila_jax.nn.vlm import VLM

CLASS_TOKEN = "class_token"
_BEHIND_THE_TOWER = ("features", "projected", "learned_score")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static part of a batch.

    Attributes:
      config: the model.
      dtype: of the computation.
      step: how visual tokens are chosen between tower and decoder; None keeps all of them.
      slots: with a step, `K`, the token slots of every picture.
    """

    config: VLMConfig
    dtype: str
    step: Step | None = None
    slots: int = 0

    @property
    def roles(self) -> dict[str, str]:
        """What the step reads: `{role: name}`, see `vila_jax.budgets.TokenMethod`."""
        if self.step is None:
            return {}
        return required_intermediates(self.step, self.config.vision, self.config.vision_depth)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The intermediates of the tower among them, each once."""
        return tuple(dict.fromkeys(name for name in self.roles.values() if name not in _BEHIND_THE_TOWER))


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
    With a budget:  picture after picture, `I x K` rows. Cells are chosen, or merged, before they are projected, each by
                    itself, so that for chosen ones the result is the same and only they are projected.
    """
    model = nnx.merge(graphdef, state)
    cells = model.merge(block_features(encoded, scales))
    if pictures is None:
        visual = model.project(cells)
        table = model.with_newline(visual.reshape(-1, visual.shape[-1]))
        if pools is not None:
            table = jnp.concatenate([table, mean_rows(table, pools).astype(table.dtype)])
        return VisualTokens(table, None)
    chosen = select(model, encoded, cells, scales, pictures, spec)
    visual = model.project(_tokens(cells, encoded, chosen, pictures, spec))
    return VisualTokens(visual.reshape(-1, visual.shape[-1]), chosen.valid.reshape(-1))


def _tokens(
    cells: Float[Array, "Q M Dm"], encoded: Encoded, chosen: Selection, pictures: Pictures, spec: Spec
) -> Float[Array, "I K Dm"]:
    """The chosen cells, or the sums that were chosen; see `Selection`."""
    if chosen.weights is None:
        index, per_tile = jnp.maximum(chosen.indices, 0), cells.shape[1]
        tile = jnp.take_along_axis(pictures.tiles, index // per_tile, axis=1)
        return cells[tile, index % per_tile]
    own = cells[pictures.tiles]
    own = own.reshape(own.shape[0], -1, own.shape[-1])
    if CLASS_TOKEN in spec.wanted:
        own = jnp.concatenate([own, encoded.intermediates[CLASS_TOKEN][pictures.tiles]], axis=1)
    merged = jnp.einsum("IKM,IMD->IKD", chosen.weights, own, preferred_element_type=jnp.float32)
    return merged.astype(cells.dtype)


def selection(
    graphdef: nnx.GraphDef, state: nnx.State, encoded: Encoded, scales: Scales | None, pictures: Pictures, *, spec: Spec
) -> Selection:
    """The tokens of every picture, before they are projected."""
    model = nnx.merge(graphdef, state)
    return select(model, encoded, model.merge(block_features(encoded, scales)), scales, pictures, spec)


def select(
    model: VLM,
    encoded: Encoded,
    cells: Float[Array, "Q M Dm"],
    scales: Scales | None,
    pictures: Pictures,
    spec: Spec,
) -> Selection:
    """The tokens of every picture: scores are summed over heads, and over a cell's patches; keys are their mean."""
    assert spec.step is not None
    window = spec.config.projector.window

    def values(name: str) -> Float[Array, "Q M *width"]:
        if name == "features":
            return cells
        if name == "projected":
            return model.project(cells)
        if name == "learned_score":
            return model.score(cells)
        found = encoded.intermediates[name]
        if name == CLASS_TOKEN:
            return found[:, None]
        return _cell_keys(found, scales, window) if found.ndim == 4 else _cell_scores(found, scales, window)

    by_picture = {role: values(name)[pictures.tiles] for role, name in spec.roles.items()}
    return select_tokens(spec.step, by_picture, pictures.plan, spec.slots)


def _cell_scores(scores: Float[Array, "R N P"], scales: Scales | None, window: int) -> Float[Array, "Q M"]:
    """Scores of patches by head -> of cells of the tiles (with scales, of the `Q` blocks)."""
    if scales is not None:
        blocks = compose_scores(scores, scales.tiles, scales.index)
        scores = blocks.reshape(-1, *blocks.shape[2:])
    return pool_windows(jnp.sum(scores, axis=1), window)


def _cell_keys(keys: Float[Array, "R P N H"], scales: Scales | None, window: int) -> Float[Array, "Q M N H"]:
    """Keys of patches -> of cells: the sum over the patches of a cell, of which methods read only the direction."""
    flat = keys.reshape(*keys.shape[:2], -1).swapaxes(1, 2)
    if scales is not None:
        blocks = compose_scores(flat, scales.tiles, scales.index)
        flat = blocks.reshape(-1, *blocks.shape[2:])
    pooled = jax.vmap(pool_windows, in_axes=(1, None), out_axes=2)(flat, window)
    return pooled.reshape(*pooled.shape[:2], *keys.shape[2:])
