"""The language model: Llama, Mistral and Qwen2 are one network with different constants.

Layers are unrolled with one weight array each: at batch 1 a scan over stacked weights copies every slice at every step.
Training stacks them, see `vila_jax.nn.stacked`.

The cache is one key and one value array per layer, `[B, K, S, H]`, of static length (or such arrays in eight bits with
their scales, see `vila_jax.nn.cache`). Row `b` uses the first `length[b]`
entries; prompts are padded on the right, so that entry `s` of the cache is always token `s` of its row:

    prefill   |p p p p p . . . . .|   writes entries 0..T-1, `.` is garbage that no query can see
    decode    |p p p g g g . . . .|   writes entry length[b], which overwrites the padding of shorter prompts

Where a budget takes tokens away between two layers, the layers behind have fewer entries, and shorter caches; see
`vila_jax.infer.shorten`.

A batch of one has no batch axis in its cache: XLA would drop that axis by itself, but between the write and the read of
a step, and then copy the whole cache.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from vila_jax.nn.attention import attention
from vila_jax.nn.cache import Entries, empty_entries, read, write
from vila_jax.nn.config import DecoderConfig
from vila_jax.nn.focus import Focus, focused_attention, mean_weights
from vila_jax.nn.layers import ACTIVATIONS, Joined, Linear, RMSNorm
from vila_jax.nn.once import traced_once
from vila_jax.nn.params import normal, weight
from vila_jax.nn.products import linear
from vila_jax.nn.quantized import dequantize, product
from vila_jax.nn.rope import apply_rope, rotary_angles
from vila_jax.nn.stacked import Execution, run_blocks

LayerCache = tuple[Entries, Entries]
Cache = tuple[LayerCache, ...]
Rotation = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]


def empty_cache(config: DecoderConfig, batch: int, length: int | Sequence[int], dtype: DTypeLike) -> Cache:
    """A cache for `batch` rows, of one static `length` or of one for each layer.

    Args:
      dtype: of its entries; `int8` for eight bits with scales.
    """
    lengths = [length] * config.num_layers if isinstance(length, int) else length
    rows = () if batch == 1 else (batch,)
    shapes = [(*rows, config.num_kv_heads, own, config.head_dim) for own in lengths]
    return tuple((empty_entries(shape, dtype), empty_entries(shape, dtype)) for shape in shapes)


class CausalAttention(nnx.Module):
    """Grouped-query attention with rotary positions, with or without a cache.

    Attributes:
      qkv: in the place of `q`, `k` and `v` where they are joined, see `vila_jax.infer.fuse`.
    """

    def __init__(self, config: DecoderConfig, window: int | None, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.head_dim, self.window = config.head_dim, window
        width, head_dim = config.hidden_size, config.head_dim
        q, kv = config.num_heads * head_dim, config.num_kv_heads * head_dim
        bias = config.qkv_bias
        self.q = Linear(width, q, ("heads", "embed"), bias=bias, rngs=rngs, dtype=dtype)
        self.k = Linear(width, kv, ("kv_heads", "embed"), bias=bias, rngs=rngs, dtype=dtype)
        self.v = Linear(width, kv, ("kv_heads", "embed"), bias=bias, rngs=rngs, dtype=dtype)
        self.out = Linear(q, width, ("embed", "heads"), bias=config.out_bias, rngs=rngs, dtype=dtype)
        self.qkv: Joined | None = nnx.data(None)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotation: Rotation,
        cache: LayerCache | None,
        offset: Int[Array, " B"] | None,
        segments: Int[Array, "B T"] | None,
        focus: Focus | None = None,
        only: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B #T D"], LayerCache | None]:
        q, k, v = self._projected(x, rotation, only)
        if cache is not None:
            cache = (write(cache[0], k, offset), write(cache[1], v, offset))
        if cache is not None and offset is not None:
            k, v = read(cache[0], q.dtype), read(cache[1], q.dtype)
        if only is not None:
            offset = only if offset is None else only + offset
        if focus is None:
            out = attention(q, k, v, causal=True, offset=offset, window=self.window, segments=segments)
        else:
            out = focused_attention(q, k, v, focus, offset, self.window)
        return self.out(out.reshape(*out.shape[:2], -1)), cache

    def _projected(
        self, x: Float[Array, "B T D"], rotation: Rotation, only: Int[Array, " B"] | None
    ) -> tuple[Float[Array, "B #T N H"], Float[Array, "B K T H"], Float[Array, "B K T H"]]:
        """Queries, of `only` one token of each row perhaps, and keys and values of all."""
        if only is None:
            turns = rotation
            projected = (self.q(x), self.k(x), self.v(x)) if self.qkv is None else self.qkv(x)
        else:
            asked, turns = token_at(x, only), (token_at(rotation[0], only), token_at(rotation[1], only))
            parts = (self.q, self.k, self.v) if self.qkv is None else map(self.qkv.part, range(3))
            projected = [part(own) for part, own in zip(parts, (asked, x, x), strict=True)]
        q, k, v = (part.reshape(*part.shape[:2], -1, self.head_dim) for part in projected)
        return apply_rope(q, *turns), apply_rope(k, *rotation).swapaxes(1, 2), v.swapaxes(1, 2)

    def weights(
        self, x: Float[Array, "B T D"], rotation: Rotation, queries: Int[Array, "B R"]
    ) -> Float[Array, "B R T"]:
        """Attention that the tokens at `queries` pay to all of them, averaged over heads; see `mean_weights`."""
        project_q, project_k = (self.q, self.k) if self.qkv is None else map(self.qkv.part, (0, 1))
        k = project_k(x).reshape(*x.shape[:2], -1, self.head_dim)
        rows, *angles = (jnp.take_along_axis(part, queries[:, :, None], axis=1) for part in (x, *rotation))
        q = apply_rope(project_q(rows).reshape(*queries.shape, -1, self.head_dim), *angles)
        return mean_weights(q, apply_rope(k, *rotation).swapaxes(1, 2), queries, self.window)


class GatedMLP(nnx.Module):
    """`down(act(gate(x)) * up(x))`.

    Attributes:
      gate_up: in the place of `gate` and `up` where they are joined, see `vila_jax.infer.fuse`.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, hidden, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.act = ACTIVATIONS[config.hidden_act]
        self.gate = Linear(width, hidden, ("mlp", "embed"), bias=bias, rngs=rngs, dtype=dtype)
        self.up = Linear(width, hidden, ("mlp", "embed"), bias=bias, rngs=rngs, dtype=dtype)
        self.down = Linear(hidden, width, ("embed", "mlp"), bias=bias, rngs=rngs, dtype=dtype)
        self.gate_up: Joined | None = nnx.data(None)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = (self.gate(x), self.up(x)) if self.gate_up is None else self.gate_up(x)
        return self.down(self.act(gate) * up)


class DecoderBlock(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: DecoderConfig, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.norm1 = RMSNorm(config.hidden_size, config.norm_eps, rngs=rngs, dtype=dtype)
        self.attn = CausalAttention(config, config.sliding_window(layer), rngs=rngs, dtype=dtype)
        self.norm2 = RMSNorm(config.hidden_size, config.norm_eps, rngs=rngs, dtype=dtype)
        self.mlp = GatedMLP(config, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotation: Rotation,
        cache: LayerCache | None,
        offset: Int[Array, " B"] | None,
        segments: Int[Array, "B T"] | None,
        focus: Focus | None = None,
        only: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B #T D"], LayerCache | None]:
        attended, cache = self.attn(self.norm1(x), rotation, cache, offset, segments, focus, only)
        x = attended + (x if only is None else token_at(x, only))
        return x + self.mlp(self.norm2(x)), cache


def token_at(x: Shaped[Array, "B T *width"], index: Int[Array, " B"]) -> Shaped[Array, "B 1 *width"]:
    """One token of each row."""
    return jnp.take_along_axis(x, index.reshape(-1, *[1] * (x.ndim - 1)), axis=1)


@traced_once
def _run(
    block: DecoderBlock,
    x: Float[Array, "B T D"],
    rotation: Rotation,
    cache: LayerCache,
    offset: Int[Array, " B"] | None,
    segments: Int[Array, "B T"] | None,
    only: Int[Array, " B"] | None,
) -> tuple[Float[Array, "B #T D"], LayerCache | None]:
    return block(x, rotation, cache, offset, segments, only=only)


class Decoder(nnx.Module):
    """Token embeddings, blocks, final norm and the language-model head.

    Attributes:
      layers: the blocks, in training perhaps as one; see `vila_jax.nn.stacked`.
      execution: how they are run where there is no cache.
      embedding_scale, head_scale: of tables in fewer bits, `[C, g]`, see `vila_jax.nn.quantized`; else None.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.rope, self.head_dim = config.rope, config.head_dim
        table = (config.vocab_size, config.hidden_size)
        self.embedding = weight(table, ("vocab", "embed"), normal(0.02), rngs=rngs, dtype=dtype)
        self.execution = Execution()
        self.layers = nnx.List([DecoderBlock(config, i, rngs=rngs, dtype=dtype) for i in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, rngs=rngs, dtype=dtype)
        self.head = (
            None if config.tie_embeddings else weight(table, ("vocab", "embed"), normal(0.02), rngs=rngs, dtype=dtype)
        )
        self.embedding_scale: nnx.Param | None = nnx.data(None)
        self.head_scale: nnx.Param | None = nnx.data(None)

    def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        rows = self.execution.place_table(self.embedding[...])[token_ids]
        if self.embedding_scale is None:
            return rows
        return dequantize(rows, self.embedding_scale[...][token_ids]).astype(self.norm.weight[...].dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        cache: Cache | None = None,
        offset: Int[Array, " B"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        only: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B #T D"], Cache | None]:
        """Runs the blocks and the final norm.

        Args:
          positions: rotary position of every token; padding repeats the last of its row (`dynamic` scaling takes the
            largest for the length of the row).
          cache: filled and returned when given.
          offset: with a cache, index of the first token of each row in it; absent at prefill, which starts at 0.
          segments: without a cache, samples packed into one row; see `vila_jax.nn.attention`.
          only: with a cache, the one token of each row whose hidden state is wanted. The last block makes keys and
            values of all tokens, and the rest of its work is done for this one.

        Returns:
          Hidden states ready for `logits`, and the cache.
        """
        x, cache = self.run(x, positions, range(len(self.layers)), cache, offset, segments, only=only)
        return self.norm(x), cache

    def run(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        layers: range,
        cache: Cache | None = None,
        offset: Int[Array, " B"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        focus: Focus | None = None,
        only: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B #T D"], Cache | None]:
        """Runs some of the blocks.

        Args:
          cache: of these blocks alone.
          focus: which keys are seen, if not all; not with `segments`.

        For the other arguments see `__call__`.
        """
        rotation = rotary_angles(self.rope, self.head_dim, positions)
        if cache is None:

            def apply(block: DecoderBlock, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
                return block(x, rotation, None, offset, segments, focus)[0]

            return run_blocks(self.layers, apply, x, layers, self.execution), None
        written: list[LayerCache] = []
        for i in layers:
            with jax.named_scope(f"decoder_layer_{i}"):
                arrays = x, rotation, cache[i - layers.start], offset, segments
                alone = only if i == layers.stop - 1 else None
                if focus is None:
                    x, own = _run(self.layers[i], *arrays, alone)
                else:
                    x, own = self.layers[i](*arrays, focus, alone)  # holds a function, which is no array
            assert own is not None  # a block with a cache gives it back
            written.append(own)
        return x, tuple(written)

    def attention_weights(
        self,
        layer: int,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        queries: Int[Array, "B R"],
    ) -> Float[Array, "B R T"]:
        """Attention that some of the tokens would pay in a layer that reads `x`, averaged over heads, float32.

        Args:
          layer: 0-based.
          x: what the layer reads.
          positions: of all tokens.
          queries: their indices among the tokens.
        """
        block = self.layers[layer]
        return block.attn.weights(block.norm1(x), rotary_angles(self.rope, self.head_dim, positions), queries)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch C"]:
        """Scores of every vocabulary entry, float32."""
        table, scale = self.embedding, self.embedding_scale
        if self.head is not None:
            table, scale = self.head, self.head_scale
        if scale is not None:
            return product(hidden, table[...], scale[...], jnp.float32)
        return linear(hidden, table[...], jnp.float32)
