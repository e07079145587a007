"""Products of one input as one: queries, keys and values of the decoder, and the two halves of its MLP.

Fewer and larger products, each of which reads the input once: fewer launches on a GPU, and wider matrices at batch 1.
Checkpoints, conversion, training and pruning know nothing of it: it is done to a model that was loaded, on one device.
Split over the outputs of a mesh, queries, keys and values would lie on different devices, so that there it is refused.
"""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from vila_jax.errors import ConfigError
from vila_jax.nn.layers import Joined


def check_one_device(mesh: Mesh | None) -> None:
    """
    Raises:
      ConfigError: the model is to be split over several devices.
    """
    if mesh is not None and mesh.size > 1:
        fix = "Leave out `fuse`, or the mesh."
        raise ConfigError("products are fused on one device alone", where=f"mesh of {mesh.size} devices", fix=fix)


def fuse_products(graphdef: nnx.GraphDef, state: nnx.State) -> tuple[nnx.GraphDef, nnx.State]:
    """Joins the products of a `vila_jax.nn.vlm.VLM`.

    Its state is used up: arrays that were joined are deleted, block by block, so that no more than those of one block
    are ever there twice.
    """
    model = nnx.merge(graphdef, state)
    for block in model.decoder.layers:
        _join(block.attn, "qkv", ("q", "k", "v"))
        _join(block.mlp, "gate_up", ("gate", "up"))
    return nnx.split(model)


def _join(module: Any, name: str, parts: tuple[str, ...]) -> None:
    """Puts one `Joined` in the place of several `Linear`s."""
    linears = [getattr(module, part) for part in parts]
    joined = Joined(linears)
    jax.block_until_ready(jax.tree.leaves(nnx.state(joined)))
    setattr(module, name, joined)
    for part, linear in zip(parts, linears, strict=True):
        for array in jax.tree.leaves(nnx.state(linear)):
            array.delete()
        delattr(module, part)
