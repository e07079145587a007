"""What tests of selecting methods share."""

import jax
import numpy as np

from vila_jax.budgets import Step, capacity, make_plan, select_tokens, stack_plans

_select = jax.jit(select_tokens, static_argnums=(0, 3))


def kept(spec, geometry, inputs):
    """Mask `[P, N]` of the patches that a step keeps of one picture; `inputs` are its own, `{role: [P, N, *width]}`."""
    step, shape = Step.parse(spec), (geometry.num_tiles, geometry.patches_per_tile)
    inputs = {role: np.asarray(own, np.float32).reshape(1, *shape, *own.shape[2:]) for role, own in inputs.items()}
    plan = stack_plans([make_plan(step, geometry, geometry.num_tiles)])
    indices, valid, _ = jax.device_get(_select(step, inputs, plan, capacity(step, *shape)))
    mask = np.zeros(shape, bool)
    mask.reshape(-1)[indices[valid]] = True
    assert mask.sum() == valid.sum()
    return mask


def unit(features):
    """Directions, on which dot products are cosines."""
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def farthest_first(features, candidates, count):
    """The `count` tokens of `[M, D]` that DivPrune keeps of the candidates, in order: each step over plain lists."""
    similarity = unit(features.astype(np.float64)) @ unit(features.astype(np.float64)).T
    chosen = [min(candidates, key=lambda i: max(similarity[i, j] for j in candidates if j != i))]
    while len(chosen) < count:
        left = [i for i in candidates if i not in chosen]
        chosen.append(min(left, key=lambda i: similarity[i, chosen].max()))
    return sorted(chosen)
