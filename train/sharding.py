"""Where everything of a run lies on a mesh.

    weights          by the table of `vila_jax.dist.rules`; the axis of layers is never split
    their moments    as the weights
    a batch          rows over data and fsdp, tokens of a row (and its tiles) over sequence
    states           between two blocks, as the batch

Tokens over `sequence` are for long documents: every device computes its stretch of each row, and attention gathers the
keys and values of the others (after the rotation, so that positions need no care).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.update import TrainState
from train.weights import Flat, Structure
from vila_jax.dist.rules import ShardingRules, sharding_for
from vila_jax.errors import ConfigError
from vila_jax.nn.stacked import Execution, Remat

ROWS = ("data", "fsdp")
"""Mesh axes that rows of a batch are split over."""

_TOKENS = ("token_ids", "targets", "source", "segments", "positions")
_TILES = ("pixels",)


def executions(remat: Remat, mesh: Mesh | None) -> dict[str, Execution]:
    """How the blocks of tower and decoder are run on a mesh, as arguments of `Structure.of`."""
    if mesh is None:
        return {"tower": Execution(remat), "decoder": Execution(remat)}
    tiles = NamedSharding(mesh, PartitionSpec((*ROWS, "sequence")))
    tokens = NamedSharding(mesh, PartitionSpec(ROWS, "sequence"))
    table = NamedSharding(mesh, PartitionSpec("tensor"))
    return {"tower": Execution(remat, tiles), "decoder": Execution(remat, tokens, table)}


@dataclasses.dataclass(frozen=True)
class Placement:
    """The shardings of a run.

    Attributes:
      weights: of every weight, by its dotted name.
    """

    mesh: Mesh
    weights: Mapping[str, NamedSharding]

    @classmethod
    def of(cls, structure: Structure, weights: Flat, mesh: Mesh, rules: ShardingRules | None = None) -> "Placement":
        """
        Args:
          weights: or their abstract values; those that are not of the structure are replicated.
        """
        axes = {name: structure.axes.get(name, (None,) * len(value.shape)) for name, value in weights.items()}
        shardings = {name: sharding_for(axes[name], value.shape, mesh, rules) for name, value in weights.items()}
        return cls(mesh, shardings)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def flat(self, weights: Flat) -> dict[str, NamedSharding]:
        """Of some of the weights."""
        return {name: self.weights[name] for name in weights}

    def state(self, state: TrainState) -> TrainState:
        """Of every leaf of a state (which may be abstract).

        What stands under the name of a weight and has its shape, such as its moments, lies as the weight does. All else
        is small (counts, the sums of rows and columns that Adafactor keeps) and is replicated.
        """
        shapes = {name: value.shape for name, value in state.trained.items()}

        def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            name = getattr(path[-1], "key", None) if path else None
            return self.weights[name] if name in shapes and leaf.shape == shapes[name] else self.replicated

        return jax.tree_util.tree_map_with_path(sharding, state)

    def batch(self, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
        """Of a batch whose arrays are `[A, B, …]`, `B` rows in each of `A` parts.

        Raises:
          ConfigError: rows that cannot be shared out evenly.
        """
        rows, shares = next(iter(batch.values())).shape[1], self.row_shares
        if rows % shares:
            raise ConfigError(
                f"{rows} rows (in each part of a step) cannot be shared out evenly among {shares} groups of devices",
                where="rows",
                fix=f"Use a multiple of {shares}, or fewer devices on the axes {' and '.join(ROWS)}.",
            )
        return {name: NamedSharding(self.mesh, self._batch_spec(name, value.shape)) for name, value in batch.items()}

    def _batch_spec(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        splits = name in _TOKENS + _TILES and shape[2] % self.mesh.shape["sequence"] == 0
        return PartitionSpec(None, ROWS, "sequence") if splits else PartitionSpec(None, ROWS)

    @property
    def row_shares(self) -> int:
        """Groups of devices that rows are shared out among."""
        return int(np.prod([self.mesh.shape[axis] for axis in ROWS]))

    @property
    def token_shares(self) -> int:
        """Groups of devices that the tokens of a batch are shared out among."""
        return self.row_shares * self.mesh.shape["sequence"]

    def host_share(self, process: int | None = None) -> tuple[int, int]:
        """Which share of the rows a process has to read, and how many shares there are.

        Processes whose devices differ on `tensor` or `sequence` alone read the same rows.

        Raises:
          ConfigError: the rows of two processes overlap only in part.
        """
        owners: dict[int, set[int]] = {}
        groups = self.mesh.devices.reshape(self.row_shares, -1)
        for group, devices in enumerate(groups):
            for device in devices:
                owners.setdefault(device.process_index, set()).add(group)
        shares = sorted({tuple(sorted(own)) for own in owners.values()})
        if sum(map(len, shares)) != self.row_shares or len({len(share) for share in shares}) > 1:
            raise ConfigError(
                "the devices of one host are not a whole block of the mesh",
                where="mesh",
                fix="Let tensor x sequence divide the devices of a host, or be a multiple of them.",
            )
        own = owners[jax.process_index() if process is None else process]
        return shares.index(tuple(sorted(own))), len(shares)

    def put(self, tree: Any, shardings: Any) -> Any:
        """Arrays that every process has in whole, on the mesh: weights, a state."""
        return jax.tree.map(_put, tree, shardings)

    def put_batch(self, batch: Mapping[str, np.ndarray], parts: int = 1) -> dict[str, jax.Array]:
        """The rows of this process, `[b, …]`, as its share of a batch `[A, B / A, …]` on the mesh.

        Raises:
          ConfigError: rows that are not whole parts, or cannot be shared out evenly.
        """
        _, shares = self.host_share()
        local = in_parts(batch, parts)
        whole = {
            name: jax.ShapeDtypeStruct((parts, value.shape[1] * shares, *value.shape[2:]), value.dtype)
            for name, value in local.items()
        }
        shardings = self.batch(whole)
        return {
            name: jax.make_array_from_process_local_data(shardings[name], value, whole[name].shape)
            for name, value in local.items()
        }


def in_parts(batch: Mapping[str, np.ndarray], parts: int) -> dict[str, np.ndarray]:
    """Rows `[B, …]` as `[A, B / A, …]`, which a step looks at one after another.

    Raises:
      ConfigError: rows that are not whole parts.
    """
    rows = len(next(iter(batch.values())))
    if rows % parts:
        raise ConfigError(
            f"{rows} rows of this host cannot be split into {parts} equal parts",
            where="rows",
            fix="Let rows be a multiple of parts x hosts.",
        )
    return {name: value.reshape(parts, rows // parts, *value.shape[1:]) for name, value in batch.items()}


def _put(value: Any, sharding: NamedSharding) -> jax.Array:
    """`device_put` would compare values over all processes; every one of them takes its shards."""
    if isinstance(value, jax.Array) and (not value.is_fully_addressable or jax.process_count() == 1):
        return jax.device_put(value, sharding)
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
