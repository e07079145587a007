"""What a stage needs of the memory of a device, told before anything is compiled.

What goes into a step (weights, moments, batch) is counted exactly, shard by shard. What a step needs besides is an
estimate from the sizes of the model: what its blocks leave for the backward pass, and the hungriest moment of it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from train.recipe import Compute
from train.sharding import Placement
from train.update import TrainState
from train.weights import Flat, group_of
from vila_jax.errors import ConfigError
from vila_jax.nn.attention import choose_implementation
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.stacked import Remat

FLOAT32 = 4
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the fullest device.

    Attributes:
      arguments: what lies there between two steps, by what it is.
      temporary: what a step needs besides, likewise.
    """

    arguments: Mapping[str, int]
    temporary: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.arguments.values()) + sum(self.temporary.values())

    def table(self) -> str:
        """One line for each part, in GiB."""
        rows = {**self.arguments, **self.temporary, "total": self.total}
        return "\n".join(f"{name:<34}{size / GIB:10.3f} GiB" for name, size in rows.items())


@dataclasses.dataclass(frozen=True)
class _Block:
    """Sizes of a transformer's blocks as one device sees them: numbers for each token, `kept` by a derivative."""

    layers: int
    tokens: int  # of all rows of this device
    keys: int  # that a token may see
    width: int
    heads: int
    products: int  # outputs of products with weights
    inner: int  # of the MLP
    scores: int  # whether attention holds them: 1 or 0

    def kept(self, remat: Remat, itemsize: int) -> int:
        """Bytes that a block leaves in the device's memory for the backward pass."""
        own = self.width * itemsize
        if remat in ("minimal", "none"):
            own += self.products * itemsize
        if remat == "none":
            own += self._in_passing(itemsize)
        return self.tokens * own

    def working(self, itemsize: int) -> int:
        """Bytes while the derivative of a block is computed: all that it makes, and its gradient."""
        return 2 * self.tokens * (self.products * itemsize + self._in_passing(itemsize))

    def forward(self, itemsize: int) -> int:
        """Bytes while a block is run that nothing is kept of."""
        return self.tokens * (2 * self.width * itemsize + max(2 * self.inner * itemsize, self._attention(itemsize)))

    def _in_passing(self, itemsize: int) -> int:
        """Norms in float32 and out of it, what the activation makes, attention."""
        return 2 * self.width * (FLOAT32 + itemsize) + 2 * self.inner * itemsize + self._attention(itemsize)

    def _attention(self, itemsize: int) -> int:
        return 2 * self.width * itemsize + self.scores * self.heads * self.keys * (FLOAT32 + itemsize)


def plan_memory(
    config: VLMConfig,
    compute: Compute,
    state: TrainState,
    frozen: Flat,
    batch: Mapping[str, Any],
    placement: Placement | None = None,
) -> MemoryPlan:
    """Plans the memory of a step.

    Args:
      state, frozen, batch: what goes into it, abstract or not; the batch's arrays are `[A, B, …]`.
      placement: on a mesh, where it lies.
    """
    where = None if placement is None else placement.state(state)
    trained = _bytes(state.trained, None if where is None else where.trained)
    moments = _bytes((state.opt, state.average), None if where is None else (where.opt, where.average))
    arguments = {
        "trained weights": trained,
        "optimizer and average": moments,
        "frozen weights": _bytes(frozen, None if placement is None else placement.flat(frozen)),
        "batch": _bytes(dict(batch), None if placement is None else placement.batch(batch)),
    }
    itemsize = jnp.dtype(compute.dtype).itemsize
    parts = next(iter(batch.values())).shape[0]
    tower, decoder = _tower(config, compute, batch, placement), _decoder(config, compute, batch, placement)
    learns = {group_of(name) for name in state.trained}
    kept = decoder.layers * decoder.kept(compute.remat, itemsize)
    busy = [decoder.working(itemsize), _logits(config, compute, batch, placement)]
    if "tower" in learns:
        kept += tower.layers * tower.kept(compute.remat, itemsize)
        busy.append(tower.working(itemsize))
    else:
        busy.append(tower.forward(itemsize))
    temporary = {
        "gradients": trained * (2 if parts > 1 else 1),
        f"trained weights in {compute.dtype}": trained * itemsize // FLOAT32 if itemsize < FLOAT32 else 0,
        "gathered weights": _gathered(state.trained | frozen, itemsize, placement),
        f"activations kept ({compute.remat})": kept,
        "busiest moment": max(busy),
    }
    return MemoryPlan(arguments, temporary)


def check_memory(plan: MemoryPlan, limit: int | None) -> None:
    """
    Args:
      limit: bytes of a device; None where it is not known, and nothing is refused.

    Raises:
      ConfigError: the plan needs more.
    """
    if limit is None or plan.total <= limit:
        return
    largest = max({**plan.arguments, **plan.temporary}.items(), key=lambda item: item[1])[0]
    advice = {
        "trained weights": "a larger fsdp axis, or LoRA (`lora=Lora()`)",
        "optimizer and average": "a larger fsdp axis, `optimizer.rule='adafactor'`, or LoRA (`lora=Lora()`)",
        "frozen weights": "a larger fsdp or tensor axis",
        "batch": "fewer `rows.rows`, or more `rows.parts`",
        "gradients": "a larger fsdp axis, or LoRA (`lora=Lora()`)",
    }
    of_batch = "`compute.remat='full'`, fewer `rows.rows`, or more `rows.parts`"
    raise ConfigError(
        f"a device needs {plan.total / GIB:.1f} GiB and has {limit / GIB:.1f}, mostly for: {largest}\n{plan.table()}",
        where="memory",
        fix=f"Try {advice.get(largest, of_batch)}.",
    )


def device_memory(gib: float | None = None) -> int | None:
    """Bytes of a device: what it says itself, else what is given, else None."""
    said = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return int(said) if said else None if gib is None else int(gib * GIB)


def _bytes(tree: Any, shardings: Any) -> int:
    """On one device."""
    if shardings is None:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    sizes = jax.tree.map(lambda x, s: _size(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(sizes))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _axis(placement: Placement | None, name: str) -> int:
    return 1 if placement is None else placement.mesh.shape[name]


def _decoder(config: VLMConfig, compute: Compute, batch: Mapping[str, Any], placement: Placement | None) -> _Block:
    decoder, tensor = config.decoder, _axis(placement, "tensor")
    _, rows, tokens = batch["token_ids"].shape
    own = -(-rows * tokens // (1 if placement is None else placement.token_shares))
    inner, heads = -(-decoder.intermediate_size // tensor), -(-decoder.num_heads // tensor)
    kv = -(-decoder.num_kv_heads // tensor)
    products = 2 * decoder.hidden_size + (heads + 2 * kv) * decoder.head_dim + 2 * inner
    scores = _holds_scores(compute, decoder.head_dim, packed=True)
    return _Block(decoder.num_layers, own, tokens, decoder.hidden_size, heads, products, inner, scores)


def _tower(config: VLMConfig, compute: Compute, batch: Mapping[str, Any], placement: Placement | None) -> _Block:
    vision, tensor = config.vision, _axis(placement, "tensor")
    _, rows, tiles = batch["pixels"].shape[:3]
    own = -(-rows * tiles // (1 if placement is None else placement.token_shares)) * vision.num_positions
    inner, heads = -(-vision.intermediate_size // tensor), -(-vision.num_heads // tensor)
    products = 2 * vision.hidden_size + 3 * heads * vision.head_dim + inner
    scores, keys = _holds_scores(compute, vision.head_dim, packed=False), vision.num_positions
    return _Block(config.vision_depth, own, keys, vision.hidden_size, heads, products, inner, scores)


def _holds_scores(compute: Compute, head_dim: int, *, packed: bool) -> int:
    """1 where attention writes its scores to memory, 0 where a fast kernel does not."""
    backend, dtype = jax.default_backend(), jnp.dtype(compute.dtype)
    return int(choose_implementation(dtype, head_dim, backend, packed=packed) == "xla")


def _logits(config: VLMConfig, compute: Compute, batch: Mapping[str, Any], placement: Placement | None) -> int:
    """Scores of a chunk, their logarithms and their gradient, in float32; and the states that all chunks read."""
    _, rows, tokens = batch["token_ids"].shape
    shares = 1 if placement is None else placement.token_shares
    chunk = min(compute.chunk, -(-rows * tokens // shares))
    states = 2 * (rows * tokens // shares) * config.decoder.hidden_size * FLOAT32
    return chunk * -(-config.decoder.vocab_size // _axis(placement, "tensor")) * 3 * FLOAT32 + states


def _gathered(weights: Flat, itemsize: int, placement: Placement | None) -> int:
    """A block in use and the next one, and the largest of the other weights, whole but for `tensor`."""
    if placement is None or placement.mesh.shape["fsdp"] == 1:
        return 0
    tensor = placement.mesh.shape["tensor"]
    stacked = [value for name, value in weights.items() if name.startswith("decoder.layers.*")]
    block = sum(value.size // value.shape[0] for value in stacked)
    other = max(value.size for name, value in weights.items() if "*" not in name)
    return (2 * block + other) * itemsize // tensor
