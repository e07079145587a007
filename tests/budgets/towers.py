"""Towers in which tokens become fewer: transformers' CLIP and SigLIP taken apart in PyTorch, and ours beside them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers as hf
from flax import nnx

from tests.nn.oracle import normal, randomise, vision_config, with_weights_of
from vila_jax.budgets.tower import TowerReduction
from vila_jax.nn.config import VisionConfig
from vila_jax.nn.vit import VisionTower

SIZES = dict(
    hidden_size=24, intermediate_size=20, num_hidden_layers=4, num_attention_heads=3, image_size=49, patch_size=7
)
KINDS = {
    "clip": (hf.CLIPVisionConfig(**SIZES, hidden_act="quick_gelu"), hf.CLIPVisionModel, "quick_gelu"),
    "siglip": (hf.SiglipVisionConfig(**SIZES, hidden_act="gelu_pytorch_tanh"), hf.SiglipVisionModel, "gelu_tanh"),
}
DEPTH, PATCHES, TILES = 4, 49, 3

Reduce = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of the number of a block, hidden states behind its attention `[R, T, D]` and its keys `[R, T, N, H]`: the states that
go on to its MLP. Remembers by itself what it did."""


@functools.cache
def towers(kind: str):
    """The oracle, and the graph definition and state of ours."""
    config, model_class, act = KINDS[kind]
    oracle = randomise(model_class(config))
    sizes = vision_config(config, kind, act)
    build = functools.partial(tower, sizes)
    return oracle, *with_weights_of(oracle, build, "vision_tower.", "vision_tower.")


def tower(sizes: VisionConfig, rngs: nnx.Rngs) -> VisionTower:
    return VisionTower(sizes, DEPTH, rngs=rngs, dtype=jnp.float32)


def first_patch(kind: str) -> int:
    return int(kind == "clip")


def pixels(seed: int = 0) -> np.ndarray:
    return normal(TILES, 3, 49, 49, seed=seed)


@functools.partial(jax.jit, static_argnames=("graphdef", "reduction"))
def encode(graphdef, state, pixels, shown, reduction: TowerReduction):
    return nnx.merge(graphdef, state).reduced(pixels, reduction, shown)


def reduced(kind: str, rule, kept: int, pixels: np.ndarray, shown: np.ndarray | None = None):
    """The last states (without class token) and the stand-ins of our tower with `kept` tokens left."""
    _, graphdef, state = towers(kind)
    reduction = TowerReduction(rule, rule.schedule(PATCHES, kept, DEPTH))
    shown = np.ones((len(pixels), PATCHES), bool) if shown is None else shown
    states, stand_in = jax.device_get(encode(graphdef, state, pixels, shown, reduction))
    return states[-1][:, first_patch(kind) :], stand_in


@torch.no_grad()
def in_torch(kind: str, pixels: np.ndarray, reduce: Reduce, bias: Callable[[], torch.Tensor | None]) -> torch.Tensor:
    """The last states of the oracle, whose blocks are taken apart; `bias` is added to the scores of keys, `[R, T]`."""
    oracle, *_ = towers(kind)
    x = oracle.embeddings(torch.from_numpy(pixels))
    x = oracle.pre_layrnorm(x) if kind == "clip" else x
    for i, block in enumerate(oracle.encoder.layers):
        normed, attention = block.layer_norm1(x), block.self_attn
        q, k, v = (f(normed).unflatten(-1, (3, -1)) for f in (attention.q_proj, attention.k_proj, attention.v_proj))
        scores = torch.einsum("rtnh,rsnh->rnts", q, k) * q.shape[-1] ** -0.5
        if (added := bias()) is not None:
            scores = scores + added[:, None, None, :]
        out = torch.einsum("rnts,rsnh->rtnh", scores.softmax(-1), v).flatten(-2)
        x = reduce(i, x + attention.out_proj(out), k)
        x = x + block.mlp(block.layer_norm2(x))
    return x
