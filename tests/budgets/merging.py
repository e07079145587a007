"""What tests of merging methods share: choosing, and adding up what was chosen."""

import pathlib

import jax
import numpy as np

from vila_jax.budgets import Step, capacity, make_plan, select_tokens, stack_plans

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "budgets"

_select = jax.jit(select_tokens, static_argnums=(0, 3))


def choose(spec, geometries, inputs):
    """The selection of every picture, as NumPy arrays."""
    step, tiles = Step.parse(spec), max(geometry.num_tiles for geometry in geometries)
    plan = stack_plans([make_plan(step, geometry, tiles) for geometry in geometries])
    slots = capacity(step, tiles, geometries[0].patches_per_tile)
    return jax.device_get(_select(step, inputs, plan, slots))


def merged(chosen, features, class_tokens=None):
    """The tokens: sums of the features `[I, M, D]`, and of class tokens `[I, P, D]` where these may be merged."""
    parts = features if class_tokens is None else np.concatenate([features, class_tokens], axis=1)
    return np.einsum("ikm,imd->ikd", chosen.weights, parts)
