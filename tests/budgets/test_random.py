"""The random baseline."""

import jax
import jax.numpy as jnp
import numpy as np

from vila_jax.budgets import Step, make_plan, select_tokens, stack_plans, total_tokens
from vila_jax.vision.geometry import TileGeometry

PADDED = TileGeometry(8, (60, 100), (2, 2))


def draw(seed, salt, geometry=PADDED, keep=0.25):
    budget = Step("random", keep, (("seed", seed),))
    plan = stack_plans([make_plan(budget, geometry, 5, salt)])
    indices, valid, _ = select_tokens(budget, {}, plan, 400)
    return np.asarray(indices)[np.asarray(valid)]


def test_same_total_as_hired():
    for geometry in (PADDED, TileGeometry(8, (9, 9)), TileGeometry(8, (1, 99), (1, 3))):
        for keep in (0.1, 0.77, 1.0, 50):
            total = total_tokens(Step("hired", keep), geometry)
            assert len(draw(0, 0, geometry, keep)) == total


def test_seed_and_salt_decide():
    assert draw(1, 2).tolist() == draw(1, 2).tolist()
    assert draw(1, 2).tolist() != draw(2, 2).tolist()
    assert draw(1, 2).tolist() != draw(1, 3).tolist()


def test_uniform_over_real_patches():
    """Over 600 draws every real patch is kept about equally often (within 6 standard deviations), padding never."""
    step = Step.parse("random:80")
    plans = stack_plans([make_plan(step, PADDED, 5, salt) for salt in range(600)])
    times = np.asarray(step.rule.keep({}, jax.tree.map(jnp.asarray, plans))).sum(0).reshape(-1)
    real = PADDED.real().reshape(-1)
    expected = 600 * 80 / real.sum()
    assert (times[~real] == 0).all()
    assert np.abs(times[real] - expected).max() < 6 * np.sqrt(expected * (1 - 80 / real.sum()))
