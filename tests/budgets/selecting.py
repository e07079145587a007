"""What tests of selecting methods share."""

import jax
import numpy as np

from vila_jax.budgets import Step, capacity, make_plan, select_tokens, stack_plans

_select = jax.jit(select_tokens, static_argnums=(0, 3))


def kept(spec, geometry, inputs):
    """Mask `[P, N]` of the patches that a step keeps of one picture; `inputs` are its own, `{role: [P, N, *width]}`."""
    step, shape = Step.parse(spec), (geometry.num_tiles, geometry.patches_per_tile)
    inputs = {
        role: np.asarray(values, np.float32).reshape(1, *shape, *values.shape[2:]) for role, values in inputs.items()
    }
    plan = stack_plans([make_plan(step, geometry, geometry.num_tiles)])
    indices, valid, _ = jax.device_get(_select(step, inputs, plan, capacity(step, *shape)))
    mask = np.zeros(shape, bool)
    mask.reshape(-1)[indices[valid]] = True
    assert mask.sum() == valid.sum()
    return mask
