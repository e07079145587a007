"""Activations of a model at work on calibration prompts: how strongly each FFN channel and each head speaks.

What is measured is what enters the last linear layer of a part: `fc2`, `down`, or `out`. A channel counts by the mean
of its absolute value, a key/value head by the mean L2 norm of the outputs of the query heads that share it, summed.
Means are over all tokens, those of padding left out (Minitron, arXiv:2407.14679, 2.2, with L2 over heads).
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vila_jax.errors import PromptError
from vila_jax.infer.layout import Request
from vila_jax.infer.prefill import Prompts, embed
from vila_jax.infer.vision import Encoded, Scales, Spec, visual_tokens
from vila_jax.model import Model
from vila_jax.nn.layers import Linear
from vila_jax.nn.once import traced_each
from vila_jax.nn.vlm import VLM
from vila_jax.prune.parts import part_name

Means = dict[str, Float[Any, " _"]]


def calibrate(model: Model, requests: Iterable[Request]) -> Means:
    """Runs prompts with pictures through a model, one after another.

    Args:
      requests: of `Model.request`; each with a picture, or nothing would be known of the tower.

    Returns:
      Name of a part -> the mean activation of its units, float64; parts of all blocks that the model builds.

    Raises:
      PromptError: there is no request, or one without a picture.
    """
    totals: Means = {}
    count = {"vision_tower": 0, "decoder": 0}
    for request in requests:
        if not request.images:
            raise PromptError("a calibration prompt shows no picture", where="prompt", fix="Give one to each.")
        means, seen = _means(model, request)
        count = {owner: count[owner] + seen[owner] for owner in count}
        for name, mean in means.items():
            totals[name] = totals.get(name, 0.0) + seen[_owner(name)] * np.asarray(mean, np.float64)
    if not totals:
        raise PromptError("there is nothing to calibrate with", where="requests", fix="Give at least one.")
    return {name: total / count[_owner(name)] for name, total in totals.items()}


def _owner(name: str) -> str:
    return name.partition(".")[0]


def _means(model: Model, request: Request) -> tuple[Means, dict[str, int]]:
    """The means of one prompt, and how many tiles and tokens they are means of."""
    layout = model.engine.planner.layout([request], None, 0)
    assert layout.tiles is not None
    tiles = sum(len(image.pixels) for image in request.images)
    [pixels] = layout.tiles.pixels  # without a budget all tiles are whole
    means = model.engine.phases.programs.call(
        "calibration",
        measure,
        *(pixels, np.int32(tiles), layout.tiles.scales, layout.tiles.pools, layout.prompts),
        spec=layout.tiles.spec,
    )
    return means, {"vision_tower": tiles, "decoder": int(layout.prompts.lengths[0])}


def measure(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    pixels: Float[Array, "R 3 h w"],
    tiles: Int[Array, ""],
    scales: Scales | None,
    pools: Int[Array, "P W"] | None,
    prompts: Prompts,
    *,
    spec: Spec,
) -> Means:
    """Mean activations of all parts over one prompt.

    Args:
      tiles: how many of the `R` tiles are no padding.
      prompts: a single one.
    """
    model = nnx.merge(graphdef, state)
    means: Means = {}
    _listen(model, means, (jnp.arange(pixels.shape[0]) < tiles)[:, None], prompts, spec)
    with traced_each():
        encoded = Encoded(*model.encode(pixels.astype(spec.dtype)))
    visual = visual_tokens(graphdef, state, encoded, scales, None, pools, spec=spec)
    tokens = embed(model, prompts, visual)
    model.decoder(tokens.x, tokens.positions)
    return means


def _listen(model: VLM, means: Means, tile_is_real: Any, prompts: Prompts, spec: Spec) -> None:
    """Puts an ear before the last layer of every part."""
    config = spec.config.decoder
    for i, block in enumerate(model.vision_tower.layers):
        _put_ear(block, "fc2", means, part_name(f"vision_tower.layers.{i}", "vision_ffn"), tile_is_real)
    token_is_real = jnp.arange(prompts.token_ids.shape[1])[None, :] < jnp.asarray(prompts.lengths)[:, None]
    heads = (config.num_kv_heads, -1, config.head_dim)
    for i, layer in enumerate(model.decoder.layers):
        name = f"decoder.layers.{i}"
        _put_ear(layer.mlp, "down", means, part_name(name, "ffn"), token_is_real)
        _put_ear(layer.attn, "out", means, part_name(name, "heads"), token_is_real, heads)


def _put_ear(
    owner: Any, layer: str, means: Means, name: str, is_real: Any, heads: tuple[int, int, int] | None = None
) -> None:
    """Makes a linear layer write down the mean of what enters it.

    Args:
      owner, layer: the module, and the name of the layer in it.
      means: written to, under `name`.
      is_real: which tokens count, `[B, 1]` or `[B, T]`.
      heads: the shape of what enters, if it is heads: groups, heads of a group, their width.
    """
    linear: Linear = getattr(owner, layer)

    def heard(x: Float[Array, "B T i"]) -> Float[Array, "B T o"]:
        values = jnp.abs(x.astype(jnp.float32))
        if heads is not None:
            values = jnp.sum(jnp.linalg.norm(values.reshape(*x.shape[:2], *heads), axis=-1), axis=-1)
        counts = jnp.broadcast_to(is_real, x.shape[:2])
        total = jnp.sum(jnp.where(counts[:, :, None], values, 0.0), axis=(0, 1))
        means[name] = total / jnp.sum(counts)
        return linear(x)

    setattr(owner, layer, heard)
