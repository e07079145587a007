"""Placing a model on many devices: a mesh, and one table from logical axes to its axes."""

from vila_jax.dist.mesh import make_mesh, parse_axes
from vila_jax.dist.rules import ShardingRules, sharding_for
from vila_jax.dist.start import start

__all__ = ["ShardingRules", "make_mesh", "parse_axes", "sharding_for", "start"]
