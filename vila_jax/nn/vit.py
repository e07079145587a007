"""Vision transformers: CLIP (class token, norm before the blocks) and SigLIP (neither).

Only the blocks up to the feature layer are built. Besides the features the tower returns, when asked by name, what
token-budget methods score with:

    cls_attention/i   [R, N, P]      attention of the class token to every patch in block i (0-based), softmax included
    keys/i            [R, P, N, H]   keys of block i, class token excluded

A name costs at most one extra attention row in its block; the block itself keeps its fast attention kernel.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vila_jax.nn.attention import attention
from vila_jax.nn.config import VisionConfig
from vila_jax.nn.layers import ACTIVATIONS, LayerNorm, Linear
from vila_jax.nn.params import fan_in, normal, weight, zeros

Intermediates = dict[str, Float[Array, "..."]]


class Embeddings(nnx.Module):
    """Patches and, for CLIP, a class token in front of them; learned positions are added."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.side, self.patch_size = config.side, config.patch_size
        width, p = config.hidden_size, config.patch_size
        kernel = (width, 3, p, p)
        axes = ("vision_embed", None, None, None)
        self.patch_weight = weight(kernel, axes, fan_in(kernel), rngs=rngs, dtype=dtype)
        has_bias, has_class = config.kind == "siglip", config.has_class_token
        self.patch_bias = weight((width,), ("norm",), zeros, rngs=rngs, dtype=dtype) if has_bias else None
        self.class_token = weight((width,), ("norm",), normal(0.02), rngs=rngs, dtype=dtype) if has_class else None
        self.position = weight(
            (config.num_positions, width), (None, "vision_embed"), normal(0.02), rngs=rngs, dtype=dtype
        )

    def __call__(self, pixels: Float[Array, "R 3 h w"]) -> Float[Array, "R P D"]:
        tiles, side, p = pixels.shape[0], self.side, self.patch_size
        pixels = pixels[:, :, : side * p, : side * p].reshape(tiles, 3, side, p, side, p)
        x = jnp.einsum("Rchpwq,Dcpq->RhwD", pixels, self.patch_weight[...])
        x = x.reshape(tiles, side * side, -1)
        if self.patch_bias is not None:
            x = x + self.patch_bias[...][None, None, :]
        if self.class_token is not None:
            first = jnp.broadcast_to(self.class_token[...][None, None, :], (tiles, 1, x.shape[-1]))
            x = jnp.concatenate([first, x], axis=1)
        return x + self.position[...][None, :, :]


class SelfAttention(nnx.Module):
    """Multi-head attention of every token to every token."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        width = config.hidden_size
        into, out = ("vision_heads", "vision_embed"), ("vision_embed", "vision_heads")
        self.q = Linear(width, width, into, bias=True, rngs=rngs, dtype=dtype)
        self.k = Linear(width, width, into, bias=True, rngs=rngs, dtype=dtype)
        self.v = Linear(width, width, into, bias=True, rngs=rngs, dtype=dtype)
        self.out = Linear(width, width, out, bias=True, rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "R P D"], wanted: Collection[str]
    ) -> tuple[Float[Array, "R P D"], Intermediates]:
        heads = (*x.shape[:2], self.num_heads, self.head_dim)
        q, k, v = (project(x).reshape(heads) for project in (self.q, self.k, self.v))
        out = self.out(attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2)).reshape(x.shape))
        intermediates: Intermediates = {}
        if "cls_attention" in wanted:
            intermediates["cls_attention"] = class_attention(q[:, 0], k)[:, :, 1:]
        if "keys" in wanted:
            intermediates["keys"] = k
        return out, intermediates


def class_attention(q: Float[Array, "R N H"], k: Float[Array, "R P N H"]) -> Float[Array, "R N P"]:
    """The attention row of one query per tile, in float32: the softmax that the fast kernel does not hand out.

    At the highest precision, because tokens are ranked by it: the ranking must not depend on the device.
    """
    scores = jnp.einsum("RNH,RPNH->RNP", q, k, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1)


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, hidden = config.hidden_size, config.intermediate_size
        self.act = ACTIVATIONS[config.hidden_act]
        self.norm1 = LayerNorm(width, config.norm_eps, rngs=rngs, dtype=dtype)
        self.attn = SelfAttention(config, rngs=rngs, dtype=dtype)
        self.norm2 = LayerNorm(width, config.norm_eps, rngs=rngs, dtype=dtype)
        self.fc1 = Linear(width, hidden, ("vision_mlp", "vision_embed"), bias=True, rngs=rngs, dtype=dtype)
        self.fc2 = Linear(hidden, width, ("vision_embed", "vision_mlp"), bias=True, rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "R P D"], wanted: Collection[str] = ()
    ) -> tuple[Float[Array, "R P D"], Intermediates]:
        attended, intermediates = self.attn(self.norm1(x), wanted)
        x = x + attended
        return x + self.fc2(self.act(self.fc1(self.norm2(x)))), intermediates


class VisionTower(nnx.Module):
    """Embeddings and the first `depth` blocks."""

    def __init__(self, config: VisionConfig, depth: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.has_class_token, self.image_size = config.has_class_token, config.image_size
        self.embeddings = Embeddings(config, rngs=rngs, dtype=dtype)
        self.pre_norm = (
            LayerNorm(config.hidden_size, config.norm_eps, rngs=rngs, dtype=dtype) if config.kind == "clip" else None
        )
        self.layers = nnx.List([Block(config, rngs=rngs, dtype=dtype) for _ in range(depth)])

    def __call__(
        self, pixels: Float[Array, "R 3 h w"], wanted: Collection[str] = ()
    ) -> tuple[list[Float[Array, "R P D"]], Intermediates]:
        """Encodes normalised tiles.

        Returns:
          The hidden states, embeddings first and then the output of each block, class token (if any) in front; and
          the intermediates named in `wanted`, patches only.

        Raises:
          ValueError: tiles of another size, or a name that this tower does not have.
        """
        size = (self.image_size, self.image_size)
        if pixels.shape[2:] != size:
            raise ValueError(f"pixels: tiles of {pixels.shape[2:]}, expected {size}")
        by_block = self._by_block(wanted)
        with jax.named_scope("vision_tower"):
            x = self.embeddings(pixels)
            x = x if self.pre_norm is None else self.pre_norm(x)
            states, intermediates = [x], {}
            for i, block in enumerate(self.layers):
                x, found = block(x, by_block.get(i, ()))
                states.append(x)
                for name, value in found.items():
                    patches_only = value[:, 1:] if name == "keys" and self.has_class_token else value
                    intermediates[f"{name}/{i}"] = patches_only
        return states, intermediates

    def _by_block(self, wanted: Collection[str]) -> dict[int, list[str]]:
        """`{"keys/3"}` -> `{3: ["keys"]}`."""
        kinds = ("cls_attention", "keys") if self.has_class_token else ("keys",)
        known = {f"{kind}/{i}": (i, kind) for kind in kinds for i in range(len(self.layers))}
        by_block: dict[int, list[str]] = {}
        for name in wanted:
            if name not in known:
                names = " or ".join(f"{kind}/i" for kind in kinds)
                raise ValueError(f"no intermediate {name!r}: this tower has {names} with i < {len(self.layers)}")
            block, kind = known[name]
            by_block.setdefault(block, []).append(kind)
        return by_block
