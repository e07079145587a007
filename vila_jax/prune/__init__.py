"""Structured pruning: a smaller dense checkpoint, in the layout of its source, that any tool loads.

    Sparsity -> sizes that remain -> units of every part -> their scores -> rows and columns cut -> files and configs

`sizes` decides how much remains, `parts` finds what belongs together, `calibrate` listens to a model at work, and
`prune` cuts and writes.
"""

from vila_jax.prune.calibrate import calibrate
from vila_jax.prune.prune import Pruned, prune
from vila_jax.prune.sizes import Sparsity, remaining

__all__ = ["Pruned", "Sparsity", "calibrate", "prune", "remaining"]
