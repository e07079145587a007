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
from vila_jax.budgets.tower import TowerReduction
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
      reduction: what makes the tokens fewer inside the tower; `step` then chooses among those that are left.
    """

    config: VLMConfig
    dtype: str
    step: Step | None = None
    slots: int = 0
    reduction: TowerReduction | None = None

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
    """What the tower says of all tiles of a batch: features, and intermediates by name.

    Where a reduction made the tokens fewer, `stand_in` names for every patch the one that stands for its token.
    """

    features: Float[Array, "R N Dv"]
    intermediates: Intermediates
    stand_in: Int[Array, "R N"] | None = None


class VisualTokens(NamedTuple):
    """The table of visual tokens that prompts point into, and with a budget which of its rows are used."""

    table: Float[Array, "V D"]
    valid: Bool[Array, " V"] | None


def encode_tiles(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    pixels: tuple[Float[Array, "_ 3 _ _"], ...],
    shown: Bool[Any, "R N"] | None = None,
    *,
    dtype: str,
    wanted: tuple[str, ...],
    reduction: TowerReduction | None = None,
) -> Encoded:
    """Runs the tower, in `dtype`, over the tiles of all pictures.

    Tiles come in one array for each size. The patches of smaller ones stand in the upper left corner of a whole tile,
    the others are zero.

    Args:
      shown: with a reduction, patches that show a picture rather than padding; all tiles are then whole.
      wanted: names of intermediates; none with a reduction.
      reduction: makes the tokens fewer inside the tower.
    """
    model = nnx.merge(graphdef, state)

    def encode_some(tiles: Float[Array, "r 3 h w"], shown: Bool[Array, "r N"] | None) -> Encoded:
        return encode(model, tiles.astype(dtype), shown, wanted=wanted, reduction=reduction)

    def encode_all(tiles: Float[Array, "r 3 h w"]) -> Encoded:
        if jax.default_backend() != "cpu":
            return encode_some(tiles, shown)
        # One tile keeps a CPU busy; with five, up to half the time goes into fresh memory for their attention scores.
        by_tile = jax.lax.map(lambda tile: encode_some(*jax.tree.map(lambda x: x[None], tile)), (tiles, shown))
        return jax.tree.map(lambda x: x[:, 0], by_tile)

    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *(encode_all(tiles) for tiles in pixels))


def encode(
    model: VLM,
    tiles: Float[Array, "r 3 h w"],
    shown: Bool[Array, "r N"] | None,
    *,
    wanted: tuple[str, ...],
    reduction: TowerReduction | None,
) -> Encoded:
    """What the tower says of tiles of one size; for the arguments see `encode_tiles`."""
    if reduction is not None and shown is not None:
        features, stand_in = model.encode_reduced(tiles, reduction, shown)
        return Encoded(features, {}, stand_in)
    encoded, embeddings = Encoded(*model.encode(tiles, wanted)), model.vision_tower.embeddings
    side = tiles.shape[2] // embeddings.patch_size
    return encoded if side == embeddings.side else _in_corner(encoded, side, embeddings.side)


def _in_corner(encoded: Encoded, side: int, whole: int) -> Encoded:
    """From tiles of `side` x `side` patches to such of `whole` x `whole`, filled up with zeros."""

    def fill(values: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
        before, after = values.shape[:axis], values.shape[axis + 1 :]
        grid = values.reshape(*before, side, side, *after)
        missing = [(0, whole - side) if i in (axis, axis + 1) else (0, 0) for i in range(grid.ndim)]
        return jnp.pad(grid, missing).reshape(*before, whole * whole, *after)

    found = {
        name: value if name == CLASS_TOKEN else fill(value, 1 if value.ndim == 4 else 2)
        for name, value in encoded.intermediates.items()
    }
    return Encoded(fill(encoded.features, 1), found)


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
    """Selects and projects; see `visual_table`."""
    return visual_table(nnx.merge(graphdef, state), encoded, scales, pictures, pools, spec)


def visual_table(
    model: VLM,
    encoded: Encoded,
    scales: Scales | None,
    pictures: Pictures | None,
    pools: Int[Any, "P W"] | None,
    spec: Spec | None,
) -> VisualTokens:
    """The table of visual tokens.

    All tokens:     tile after tile (block after block), `R x M` rows, then the newline (if the model has one), then
                    the pooled tokens of videos: means of the rows that `pools` names, -1 being none.
    With a budget:  picture after picture, `I x K` rows. Cells are chosen, or merged, before they are projected, each by
                    itself, so that for chosen ones the result is the same and only they are projected.
    """
    if pictures is None:
        visual = model.project(model.merge(block_features(encoded, scales)))
        table = model.with_newline(visual.reshape(-1, visual.shape[-1]))
        if pools is not None:
            table = jnp.concatenate([table, mean_rows(table, pools).astype(table.dtype)])
        return VisualTokens(table, None)
    assert spec is not None
    cells, valid = kept_cells(model, encoded, scales, pictures, spec)
    visual = model.project(cells)
    return VisualTokens(visual.reshape(-1, visual.shape[-1]), valid.reshape(-1))


def kept_cells(
    model: VLM, encoded: Encoded, scales: Scales | None, pictures: Pictures, spec: Spec
) -> tuple[Float[Array, "I K Dm"], Bool[Array, "I K"]]:
    """What the projector is given of every picture under a budget, and which of its slots are used."""
    cells = model.merge(block_features(encoded, scales))
    chosen = select(model, encoded, cells, scales, pictures, spec)
    return _tokens(cells, encoded, chosen, scales, pictures, spec), chosen.valid


def _tokens(
    cells: Float[Array, "Q M Dm"],
    encoded: Encoded,
    chosen: Selection,
    scales: Scales | None,
    pictures: Pictures,
    spec: Spec,
) -> Float[Array, "I K Dm"]:
    """The chosen cells, or the sums that were chosen; see `Selection`."""
    if chosen.weights is None:
        index, per_tile = jnp.maximum(chosen.indices, 0), cells.shape[1]
        tile = jnp.take_along_axis(pictures.tiles, index // per_tile, axis=1)
        return cells[tile, index % per_tile]
    own = cells[pictures.tiles]
    own = own.reshape(own.shape[0], -1, own.shape[-1])
    if CLASS_TOKEN in spec.wanted:
        classes = _class_cells(encoded, scales, spec.config.projector.window)[pictures.tiles]
        own = jnp.concatenate([own, classes[:, :, 0]], axis=1)
    merged = jnp.einsum("IKM,IMD->IKD", chosen.weights, own.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return merged.astype(cells.dtype)


def _class_cells(encoded: Encoded, scales: Scales | None, window: int) -> Float[Array, "Q 1 Dm"]:
    """The class token of every tile as a cell: as if all patches of the cell were the class token.

    With scales the class tokens of a block are, scale by scale, the mean over its patches of those of their tiles.
    """
    tokens = encoded.intermediates[CLASS_TOKEN]
    if scales is not None:
        everywhere = jnp.broadcast_to(tokens, (tokens.shape[0], encoded.features.shape[1], tokens.shape[2]))
        blocks = compose(everywhere, scales.tiles, scales.index)
        tokens = jnp.mean(blocks.reshape(-1, *blocks.shape[2:]), axis=1, keepdims=True)
    return jnp.tile(tokens, window**2)


def selection(
    graphdef: nnx.GraphDef, state: nnx.State, encoded: Encoded, scales: Scales | None, pictures: Pictures, *, spec: Spec
) -> Selection:
    """The tokens of every picture, before they are projected; with the patches that were merged inside the tower."""
    model = nnx.merge(graphdef, state)
    chosen = select(model, encoded, model.merge(block_features(encoded, scales)), scales, pictures, spec)
    if encoded.stand_in is None:
        return chosen
    return chosen._replace(weights=_shares(_stand_ins(encoded.stand_in, pictures), chosen.indices))


def _stand_ins(stand_in: Int[Array, "R N"], pictures: Pictures) -> Int[Array, "I P N"]:
    """For every patch of the pictures, the flat index of the one that stands for it; -1 where it was dropped."""
    own = stand_in[pictures.tiles]
    first = jnp.arange(own.shape[1], dtype=jnp.int32)[None, :, None] * own.shape[2]
    return jnp.where(own < 0, -1, first + own)


def _shares(stand_ins: Int[Array, "I P N"], indices: Int[Array, "I K"]) -> Float[Array, "I K M"]:
    """Weights of a `Selection`: what is merged in a token has its features, of which the token is the mean."""
    held = stand_ins.reshape(len(stand_ins), 1, -1) == indices[:, :, None]
    return held / jnp.maximum(held.sum(axis=2, keepdims=True), 1).astype(jnp.float32)


def _left_in_tower(plan: Plan, stand_in: Int[Array, "R N"], pictures: Pictures) -> Plan:
    """The plan with those candidates alone that stand for a token."""
    stand_ins = _stand_ins(stand_in, pictures)
    own = jnp.arange(stand_ins[0].size, dtype=jnp.int32).reshape(1, *stand_ins.shape[1:])
    return plan._replace(candidates=plan.candidates & (stand_ins == own))


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
            return _class_cells(encoded, scales, window)
        return _cell_keys(found, scales, window) if found.ndim == 4 else _cell_scores(found, scales, window)

    by_picture = {role: values(name)[pictures.tiles] for role, name in spec.roles.items()}
    plan = pictures.plan
    if encoded.stand_in is not None:
        plan = _left_in_tower(plan, encoded.stand_in, pictures)
    return select_tokens(spec.step, by_picture, plan, spec.slots)


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
