"""One table from the logical axes of weights to the axes of the mesh.

Weights are split over `fsdp` along the width of the model and over `tensor` along heads and hidden widths, the layout
of Megatron-LM (arXiv 1909.08053) and ZeRO-3 (arXiv 1910.02054) together: `q`, `gate` and `up` are split by output,
`out` and `down` by input, so that a block needs one sum over `tensor` per branch.
"""

import dataclasses
import types
from collections.abc import Mapping

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vila_jax.errors import ConfigError
from vila_jax.nn.params import Axes

_DEFAULT = types.MappingProxyType(
    {
        "embed": "fsdp",
        "vocab": "tensor",
        "heads": "tensor",
        "kv_heads": "tensor",
        "mlp": "tensor",
        "vision_embed": "fsdp",
        "vision_heads": "tensor",
        "vision_mlp": "tensor",
        "projector_outer": "fsdp",
        "projector_inner": "tensor",
        "norm": None,
    }
)


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical axis name -> mesh axis, None for an axis that is kept whole."""

    table: Mapping[str, str | None] = dataclasses.field(default_factory=lambda: _DEFAULT)

    def mesh_axis(self, name: str | None) -> str | None:
        """
        Raises:
          ConfigError: the table does not know the axis.
        """
        if name is None:
            return None
        if name not in self.table:
            raise ConfigError(
                f"no rule for the logical axis {name!r}", where="sharding rules", fix=f"Known: {', '.join(self.table)}."
            )
        return self.table[name]


def sharding_for(axes: Axes, shape: tuple[int, ...], mesh: Mesh, rules: ShardingRules | None = None) -> NamedSharding:
    """How a weight lies on the mesh.

    An axis whose size the mesh axis does not divide is kept whole, and so is the second of two axes that ask for the
    same mesh axis.
    """
    rules = rules or ShardingRules()
    taken: list[str | None] = []
    for name, size in zip(axes, shape, strict=True):
        axis = rules.mesh_axis(name)
        fits = axis is not None and axis not in taken and size % mesh.shape[axis] == 0
        taken.append(axis if fits else None)
    return NamedSharding(mesh, PartitionSpec(*taken))
