"""Vision transformers: CLIP, SigLIP and InternViT (`VisionConfig.kind` says how they differ).

Only the blocks up to the feature layer are built. Besides the features the tower returns, when asked by name, what
token-budget methods score with, of block i (0-based) and for patches only, without the class token:

    cls_attention/i        [R, N, P]      attention of the class token to every patch, softmax included
    received_attention/i   [R, N, P]      the same, as a mean over all tokens (towers without a class token have it too)
    flat_cls_attention/i, flat_received_attention/i
                           [R, 1, P]      both, as if there were one head of the tower's whole width
    keys/i                 [R, P, N, H]   keys, normalised where the tower does so

A name costs one extra attention row in its block (what is received: all of them again); the block itself keeps its fast
attention kernel.

Inside the tower a budget may make the tokens fewer from block to block (`VisionTower.reduced`).
"""

import functools
import itertools
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vila_jax.nn.attention import attention
from vila_jax.nn.config import VisionConfig
from vila_jax.nn.layers import ACTIVATIONS, LayerNorm, Linear, RMSNorm, along_last
from vila_jax.nn.once import traced_once
from vila_jax.nn.params import fan_in, normal, ones, weight, zeros
from vila_jax.nn.products import contract
from vila_jax.nn.resize import resize_bicubic
from vila_jax.nn.stacked import Execution, run_block, run_blocks
from vila_jax.nn.tower_tokens import Reduction, Tokens

Intermediates = dict[str, Float[Array, "..."]]


class Embeddings(nnx.Module):
    """Patches and, in some towers, a class token in front of them; learned positions are added."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.side, self.patch_size = config.side, config.patch_size
        width, p = config.hidden_size, config.patch_size
        kernel = (width, 3, p, p)
        axes = ("vision_embed", None, None, None)
        self.patch_weight = weight(kernel, axes, fan_in(kernel), rngs=rngs, dtype=dtype)
        has_bias, has_class = config.kind != "clip", config.has_class_token
        self.patch_bias = weight((width,), ("norm",), zeros, rngs=rngs, dtype=dtype) if has_bias else None
        self.class_token = weight((width,), ("norm",), normal(0.02), rngs=rngs, dtype=dtype) if has_class else None
        self.position = weight(
            (config.num_positions, width), (None, "vision_embed"), normal(0.02), rngs=rngs, dtype=dtype
        )

    def __call__(self, pixels: Float[Array, "R 3 h w"]) -> Float[Array, "R P D"]:
        tiles, p = pixels.shape[0], self.patch_size
        side = pixels.shape[2] // p
        pixels = pixels[:, :, : side * p, : side * p].reshape(tiles, 3, side, p, side, p)
        x = contract("Rchpwq,Dcpq->RhwD", pixels, self.patch_weight[...])
        x = x.reshape(tiles, side * side, -1)
        if self.patch_bias is not None:
            x = x + self.patch_bias[...][None, None, :]
        if self.class_token is not None:
            first = jnp.broadcast_to(self.class_token[...][None, None, :], (tiles, 1, x.shape[-1]))
            x = jnp.concatenate([first, x], axis=1)
        return x + self._positions(side)[None, :, :]

    def _positions(self, side: int) -> Float[Array, "P D"]:
        """Those of a tile of `side` x `side` patches; for another size than trained, between the trained ones."""
        positions = self.position[...]
        if side == self.side:
            return positions
        first = positions.shape[0] - self.side**2
        return jnp.concatenate([positions[:first], resize_bicubic(positions[first:], side)])


class SelfAttention(nnx.Module):
    """Multi-head attention of every token to every token.

    Queries, keys and values come from three projections, in InternViT from one. Where the tower normalises queries and
    keys it does so over their whole width, before they are split into heads.
    """

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.first_patch = int(config.has_class_token)
        self.is_fused, self.normalises = config.kind == "intern", config.qk_norm
        width = config.hidden_size
        into, out = ("vision_heads", "vision_embed"), ("vision_embed", "vision_heads")
        linear = functools.partial(Linear, width, rngs=rngs, dtype=dtype)
        if self.is_fused:
            self.qkv = linear(3 * width, into, bias=config.qkv_bias)
        else:
            self.q, self.k, self.v = (linear(width, into, bias=config.qkv_bias) for _ in range(3))
        if self.normalises:
            self.q_norm, self.k_norm = (RMSNorm(width, config.norm_eps, rngs=rngs, dtype=dtype) for _ in range(2))
        self.out = linear(width, out, bias=True)

    def __call__(
        self, x: Float[Array, "R P D"], wanted: Collection[str], key_bias: Float[Array, "R P"] | None = None
    ) -> tuple[Float[Array, "R P D"], Intermediates]:
        """What the branch adds. `key_bias` is added to the scores of a key; no intermediate knows of it."""
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1) if self.is_fused else (self.q(x), self.k(x), self.v(x))
        if self.normalises:
            q, k = self.q_norm(q), self.k_norm(k)
        heads = (*x.shape[:2], self.num_heads, self.head_dim)
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        out = self.out(attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), key_bias=key_bias).reshape(x.shape))
        return out, self._intermediates(q, k, wanted)

    def _intermediates(
        self, q: Float[Array, "R P N H"], k: Float[Array, "R P N H"], wanted: Collection[str]
    ) -> Intermediates:
        found: Intermediates = {}
        for prefix in ("", "flat_"):
            queries, keys = (x.reshape(*x.shape[:2], 1, -1) if prefix else x for x in (q, k))
            if f"{prefix}cls_attention" in wanted:
                found[f"{prefix}cls_attention"] = class_attention(queries[:, 0], keys)[:, :, self.first_patch :]
            if f"{prefix}received_attention" in wanted:
                found[f"{prefix}received_attention"] = received_attention(queries, keys)[:, :, self.first_patch :]
        if "keys" in wanted:
            found["keys"] = k[:, self.first_patch :]
        return found


def class_attention(q: Float[Array, "R N H"], k: Float[Array, "R P N H"]) -> Float[Array, "R N P"]:
    """The attention row of one query per tile, in float32: the softmax that the fast kernel does not hand out.

    At the highest precision, because tokens are ranked by it: the ranking must not depend on the device.
    """
    scores = jnp.einsum("RNH,RPNH->RNP", q, k, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1)


def received_attention(q: Float[Array, "R P N H"], k: Float[Array, "R P N H"]) -> Float[Array, "R N P"]:
    """The attention that every token receives, as a mean over all queries; in float32, as `class_attention` is.

    Head by head, so that there is never more than one matrix `[P, P]` per tile.
    """

    def one_head(head: tuple[Float[Array, "R P H"], Float[Array, "R P H"]]) -> Float[Array, "R P"]:
        q, k = head
        scores = jnp.einsum(
            "RQH,RPH->RQP", q, k, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )
        return jnp.mean(jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1), axis=1)

    return jax.lax.map(one_head, (q.transpose(2, 0, 1, 3), k.transpose(2, 0, 1, 3))).swapaxes(0, 1)


class Block(nnx.Module):
    """Pre-norm transformer block; in InternViT a learned vector scales what each branch adds."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, hidden = config.hidden_size, config.intermediate_size
        intern = config.kind == "intern"
        norm = RMSNorm if intern else LayerNorm
        self.act = ACTIVATIONS[config.hidden_act]
        self.norm1 = norm(width, config.norm_eps, rngs=rngs, dtype=dtype)
        self.attn = SelfAttention(config, rngs=rngs, dtype=dtype)
        self.norm2 = norm(width, config.norm_eps, rngs=rngs, dtype=dtype)
        self.fc1 = Linear(width, hidden, ("vision_mlp", "vision_embed"), bias=True, rngs=rngs, dtype=dtype)
        self.fc2 = Linear(hidden, width, ("vision_embed", "vision_mlp"), bias=True, rngs=rngs, dtype=dtype)
        self.scale1, self.scale2 = (
            weight((width,), ("norm",), ones, rngs=rngs, dtype=dtype) if intern else None for _ in range(2)
        )

    def __call__(
        self, x: Float[Array, "R P D"], wanted: Collection[str] = ()
    ) -> tuple[Float[Array, "R P D"], Intermediates]:
        x, intermediates = self.attend(x, wanted)
        return self.feed(x), intermediates

    def attend(
        self, x: Float[Array, "R P D"], wanted: Collection[str] = (), key_bias: Float[Array, "R P"] | None = None
    ) -> tuple[Float[Array, "R P D"], Intermediates]:
        """The first half: adds the attention branch."""
        attended, intermediates = self.attn(self.norm1(x), wanted, key_bias)
        return x + _scaled(attended, self.scale1), intermediates

    def feed(self, x: Float[Array, "R P D"]) -> Float[Array, "R P D"]:
        """The second half: adds the MLP branch."""
        return x + _scaled(self.fc2(self.act(self.fc1(self.norm2(x)))), self.scale2)


def _scaled(branch: Float[Array, "R P D"], scale: nnx.Param | None) -> Float[Array, "R P D"]:
    return branch if scale is None else branch * along_last(scale[...], branch.ndim)


@traced_once
def _run(block: Block, x: Float[Array, "R P D"]) -> Float[Array, "R P D"]:
    return block(x)[0]


def _run_and_ask(
    wanted: Collection[str], block: Block, x: Float[Array, "R P D"]
) -> tuple[Float[Array, "R P D"], Intermediates]:
    return block(x, wanted)


class VisionTower(nnx.Module):
    """Embeddings and the first `depth` blocks.

    Attributes:
      layers: the blocks, in training perhaps as one; see `vila_jax.nn.stacked`.
      execution: how they are run.
    """

    def __init__(self, config: VisionConfig, depth: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.has_class_token, self.image_size = config.has_class_token, config.image_size
        self.embeddings = Embeddings(config, rngs=rngs, dtype=dtype)
        self.pre_norm = (
            LayerNorm(config.hidden_size, config.norm_eps, rngs=rngs, dtype=dtype) if config.kind == "clip" else None
        )
        self.execution = Execution()
        self.layers = nnx.List([Block(config, rngs=rngs, dtype=dtype) for _ in range(depth)])

    def __call__(
        self, pixels: Float[Array, "R 3 h w"], wanted: Collection[str] = (), layers: Sequence[int] | None = None
    ) -> tuple[list[Float[Array, "R P D"]], Intermediates]:
        """Encodes normalised tiles.

        Args:
          layers: which hidden states are given back, 0 for the embeddings and `i` for the output of block `i - 1`; by
            default all of them. Where blocks are stacked, those between two that are needed are run by one scan.

        Returns:
          The hidden states in this order, class token (if any) in front; and the intermediates named in `wanted`,
          patches only.

        Smaller tiles than those that it was trained with are seen with positions between the trained ones.

        Raises:
          ValueError: tiles that are larger, no squares, or a name that this tower does not have.
        """
        layers = range(len(self.layers) + 1) if layers is None else layers
        by_block = self._by_block(wanted)
        stops = sorted({0, *layers, *by_block, *(block + 1 for block in by_block)})
        with jax.named_scope("vision_tower"):
            x = self._embed(pixels)
            states, intermediates = {0: x}, Intermediates()
            for start, stop in itertools.pairwise(stops):
                if start in by_block:
                    ask = functools.partial(_run_and_ask, by_block[start])
                    x, found = run_block(self.layers, ask, x, start, self.execution)
                    intermediates |= {f"{name}/{start}": value for name, value in found.items()}
                else:
                    x = run_blocks(self.layers, _run, x, range(start, stop), self.execution)
                states[stop] = x
        return [states[layer] for layer in layers], intermediates

    def reduced(
        self, pixels: Float[Array, "R 3 h w"], reduction: Reduction, shown: Bool[Array, "R N"]
    ) -> tuple[list[Float[Array, "R P D"]], Int[Array, "R N"]]:
        """Encodes normalised tiles with fewer and fewer tokens.

        Args:
          reduction: what makes them fewer, inside every block between attention and MLP.
          shown: patches that show the picture rather than padding.

        Returns:
          The hidden states as without a reduction: every patch has a vector, that of the token that holds it, or zeros
          where it was dropped; and for every patch the one that stands for its token, see `Tokens.stand_in`.

        Raises:
          ValueError: tiles of another size.
        """
        with jax.named_scope("vision_tower"):
            tokens = Tokens.of(self._embed(pixels), int(self.has_class_token), shown)
            states = [tokens.x]
            for i, block in enumerate(self.layers):
                x, found = block.attend(tokens.x, ("keys",), tokens.key_bias)
                tokens = reduction(i, tokens.with_states(x), found["keys"])
                tokens = tokens.with_states(block.feed(tokens.x))
                states.append(tokens.spread_states())
        return states, tokens.stand_in()

    def _embed(self, pixels: Float[Array, "R 3 h w"]) -> Float[Array, "R P D"]:
        height, width = pixels.shape[2:]
        if height != width or height > self.image_size:
            raise ValueError(f"pixels: tiles of {pixels.shape[2:]}, expected {(self.image_size, self.image_size)}")
        x = self.embeddings(pixels)
        return x if self.pre_norm is None else self.pre_norm(x)

    def _by_block(self, wanted: Collection[str]) -> dict[int, list[str]]:
        """`{"keys/3"}` -> `{3: ["keys"]}`."""
        from_class = ["cls_attention", "flat_cls_attention"] if self.has_class_token else []
        kinds = (*from_class, "received_attention", "flat_received_attention", "keys")
        known = {f"{kind}/{i}": (i, kind) for kind in kinds for i in range(len(self.layers))}
        by_block: dict[int, list[str]] = {}
        for name in wanted:
            if name not in known:
                names = ", ".join(f"{kind}/i" for kind in kinds)
                raise ValueError(f"no intermediate {name!r}: this tower has {names} with i < {len(self.layers)}")
            block, kind = known[name]
            by_block.setdefault(block, []).append(kind)
        return by_block
