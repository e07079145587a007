"""Prefill: everything from pixels to the first token, as one jitted function.

What varies from picture to picture (tiles, padding, order of the tokens) enters as arrays, so that one compilation
serves all pictures of a shape bucket.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets import Budget, Plan, Selection, required_intermediates, select_tokens
from vila_jax.infer.decode import Progress, State, advance
from vila_jax.infer.sampler import Sampler
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.decoder import empty_cache
from vila_jax.nn.vlm import VLM


class Prompts(NamedTuple):
    """A batch of laid-out prompts, padded on the right, with the tiles of all their pictures (NumPy or JAX arrays).

    Attributes:
      token_ids: ids, anything at visual slots, `[B, T]`.
      source: -1 for text, otherwise the row of the table of visual tokens, `[B, T]`.
      lengths: real tokens of every row, `[B]`.
      pixels: tiles of all pictures, one after another, `[R, 3, h, w]`; None for text alone.
      tiles: with a budget, the tiles (rows of `pixels`) of every picture, `[I, P]`.
      plan: with a budget, what it knows of every picture beforehand.
    """

    token_ids: Int[Any, "B T"]
    source: Int[Any, "B T"]
    lengths: Int[Any, " B"]
    pixels: Float[Any, "R 3 h w"] | None = None
    tiles: Int[Any, "I P"] | None = None
    plan: Plan | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static part of a prefill.

    Attributes:
      budget: how visual tokens are chosen; None keeps all of them.
      slots: with a budget, `K`, the token slots of every picture.
    """

    config: VLMConfig
    dtype: str
    budget: Budget | None = None
    slots: int = 0


def visual_tokens(model: VLM, spec: Spec, prompts: Prompts) -> tuple[Float[Array, "V D"], Bool[Array, " V"] | None]:
    """The table of visual tokens that `source` points into, and with a budget which of its rows are used.

    All tokens:     tile after tile, `R x N` rows, then the newline (if the model has one).
    With a budget:  picture after picture, `I x K` rows. Tokens are chosen before the projector, which maps every
                    token by itself, so that the result is the same and only the chosen ones are projected.
    """
    pixels = prompts.pixels
    assert pixels is not None
    if spec.budget is None:
        features, _ = model.encode(pixels)
        visual = model.project(features)
        return model.with_newline(visual.reshape(-1, visual.shape[-1])), None
    features, chosen = select_patches(model, spec, prompts)
    patches = features.shape[1]
    index = jnp.maximum(chosen.indices, 0)
    assert prompts.tiles is not None
    tile = jnp.take_along_axis(prompts.tiles, index // patches, axis=1)
    visual = model.project(features[tile, index % patches])
    return visual.reshape(-1, visual.shape[-1]), chosen.valid.reshape(-1)


def select_patches(model: VLM, spec: Spec, prompts: Prompts) -> tuple[Float[Array, "R N Dv"], Selection]:
    """Tower features of all tiles, and for every picture the patches that the budget keeps."""
    assert spec.budget is not None
    assert prompts.pixels is not None and prompts.tiles is not None and prompts.plan is not None
    roles = required_intermediates(spec.budget, spec.config.vision, spec.config.vision_depth)
    features, found = model.encode(prompts.pixels, tuple(roles.values()))
    inputs = {role: per_picture(found[name], prompts.tiles) for role, name in roles.items()}
    return features, select_tokens(spec.budget, inputs, prompts.plan, spec.slots)


def per_picture(rows: Float[Array, "R heads N"], tiles: Int[Array, "I P"]) -> Float[Array, "I P N"]:
    """Attention rows summed over heads, tiles grouped by picture."""
    return jnp.sum(rows, axis=1)[tiles]


def close_gaps(prompts: Prompts, valid: Bool[Array, " V"]) -> Prompts:
    """Moves unused visual slots behind the end of each row, so that the text after a picture follows its last token."""
    token = jnp.arange(prompts.source.shape[1])[None, :]
    used = jnp.where(prompts.source >= 0, valid[jnp.maximum(prompts.source, 0)], True)
    used = used & (token < prompts.lengths[:, None])
    order = jnp.argsort(~used, axis=1, stable=True)
    return prompts._replace(
        token_ids=jnp.take_along_axis(prompts.token_ids, order, axis=1),
        source=jnp.take_along_axis(prompts.source, order, axis=1),
        lengths=jnp.sum(used, axis=1, dtype=jnp.int32),
    )


def embed_prompts(model: VLM, spec: Spec, prompts: Prompts) -> tuple[Float[Array, "B T D"], Int[Array, " B"]]:
    """Embeddings of text and visual tokens, and the length of every row."""
    if prompts.pixels is None:
        return model.decoder.embed(prompts.token_ids), prompts.lengths
    visual, valid = visual_tokens(model, spec, prompts)
    if valid is not None:
        prompts = close_gaps(prompts, valid)
    return model.splice(prompts.token_ids, prompts.source, visual), prompts.lengths


def positions_of(token_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """0, 1, 2, ... in every row: kept visual tokens are renumbered."""
    return jax.lax.broadcasted_iota(jnp.int32, token_ids.shape, 1)


@functools.partial(jax.jit, static_argnames=("graphdef", "spec", "cache_length"))
def prefill(
    graphdef: nnx.GraphDef,
    state: State,
    prompts: Prompts,
    sampler: Sampler,
    limit: Int[Array, " B"],
    end_tokens: Int[Array, " E"],
    *,
    spec: Spec,
    cache_length: int,
) -> Progress:
    """Reads the prompts and chooses the first token of every row.

    Args:
      limit: tokens that each row may generate; rows of 0 are padding and are done at once.
      end_tokens: tokens that finish a row.
      cache_length: static length of the cache, prompt and generated tokens together.
    """
    model = nnx.merge(graphdef, state)
    batch = prompts.token_ids.shape[0]
    embedded, lengths = embed_prompts(model, spec, prompts)
    cache = empty_cache(spec.config.decoder, batch, cache_length, _dtype(spec))
    with jax.named_scope("decoder_prefill"):
        hidden, cache = model.decoder(embedded, positions_of(prompts.token_ids), cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    none = jnp.zeros(batch, jnp.int32)
    progress = Progress(cache=cache, lengths=lengths, token=none, generated=none, limit=limit, done=limit <= 0)
    return advance(progress, sampler(model.decoder.logits(last), none), end_tokens)


@functools.partial(jax.jit, static_argnames=("graphdef", "spec"))
def prompt_logits(
    graphdef: nnx.GraphDef, state: State, prompts: Prompts, *, spec: Spec
) -> tuple[Float[Array, "B T C"], Int[Array, " B"]]:
    """Float32 logits at every position of the spliced prompts, and the length of every row."""
    model = nnx.merge(graphdef, state)
    embedded, lengths = embed_prompts(model, spec, prompts)
    hidden, _ = model.decoder(embedded, positions_of(prompts.token_ids))
    return model.decoder.logits(hidden), lengths


@functools.partial(jax.jit, static_argnames=("graphdef", "spec"))
def selection(graphdef: nnx.GraphDef, state: State, prompts: Prompts, *, spec: Spec) -> Selection:
    """The patches of every picture that the budget keeps; of the model only the tower runs."""
    return select_patches(nnx.merge(graphdef, state), spec, prompts)[1]


def _dtype(spec: Spec) -> DTypeLike:
    return jnp.dtype(spec.dtype)
