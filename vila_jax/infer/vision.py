"""From the tiles of a batch's pictures to the table of visual tokens that its prompts point into.

Two programs, because they vary with different things: the tower, by far the slower to compile, is one program for all
budgets and prompts, and neither knows anything of the text.

    encode_tiles    pixels -> features of every patch, and what the budget scores with     per number of tiles
    visual_tokens   select, project                                                        per budget

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


class Pictures(NamedTuple):
    """With a budget, what is known of every picture of a batch beforehand (NumPy or JAX arrays).

    Attributes:
      tiles: the tiles of every picture, as rows of the batch's tiles, `[I, P]`.
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


def visual_tokens(
    graphdef: nnx.GraphDef, state: nnx.State, encoded: Encoded, pictures: Pictures | None, *, spec: Spec
) -> VisualTokens:
    """Selects and projects.

    All tokens:     tile after tile, `R x N` rows, then the newline (if the model has one).
    With a budget:  picture after picture, `I x K` rows. Tokens are chosen before the projector, which maps every
                    token by itself, so that the result is the same and only the chosen ones are projected.
    """
    model = nnx.merge(graphdef, state)
    if pictures is None:
        visual = model.project(encoded.features)
        return VisualTokens(model.with_newline(visual.reshape(-1, visual.shape[-1])), None)
    chosen = select(encoded, pictures, spec)
    index, patches = jnp.maximum(chosen.indices, 0), encoded.features.shape[1]
    tile = jnp.take_along_axis(pictures.tiles, index // patches, axis=1)
    visual = model.project(encoded.features[tile, index % patches])
    return VisualTokens(visual.reshape(-1, visual.shape[-1]), chosen.valid.reshape(-1))


def selection(
    graphdef: nnx.GraphDef, state: nnx.State, encoded: Encoded, pictures: Pictures, *, spec: Spec
) -> Selection:
    """The patches of every picture that the budget keeps; reads no weights."""
    del graphdef, state
    return select(encoded, pictures, spec)


def select(encoded: Encoded, pictures: Pictures, spec: Spec) -> Selection:
    """The patches of every picture that the budget keeps, by attention summed over heads."""
    assert spec.budget is not None
    by_picture = {
        role: jnp.sum(encoded.intermediates[name], axis=1)[pictures.tiles] for role, name in spec.roles.items()
    }
    return select_tokens(spec.budget, by_picture, pictures.plan, spec.slots)
