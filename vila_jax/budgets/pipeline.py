"""The calls that an engine makes, in this order, for any method."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vila_jax.budgets.count import total_tokens
from vila_jax.budgets.method import Plan
from vila_jax.budgets.select import Selection
from vila_jax.budgets.spec import Step
from vila_jax.nn.config import VisionConfig
from vila_jax.vision.geometry import TileGeometry


def required_intermediates(step: Step, vision: VisionConfig, depth: int) -> dict[str, str]:
    """What the step reads of a picture, as `{role: name}`, e.g. `{"score": "cls_attention/22"}`.

    Args:
      step: a step of the stage `tokens`.
      vision: the vision tower.
      depth: number of blocks of the tower that are built; the last one feeds the projector.

    Raises:
      BudgetError: a block does not exist.
    """
    return step.token_method.intermediates(vision, depth)


def make_plan(step: Step, geometry: TileGeometry, max_tiles: int, salt: int = 0, tower: Step | None = None) -> Plan:
    """The plan of one picture, padded to `max_tiles` tiles. Runs on the host.

    Args:
      step: a step of the stage `tokens`, or `tower` itself.
      geometry: the tiles of the picture, at most `max_tiles`.
      max_tiles: the tile bucket `P`, which alone sets the shapes of the plan.
      salt: any number that names the picture (a checksum, say): methods that draw at random mix it in, so that their
        choice depends neither on the batch nor on the place in it.
      tower: the step inside the tower. Candidates are then all patches of the picture, as any of them may be left.

    Raises:
      BudgetError: more tokens are asked for than the picture has.
    """
    if geometry.num_tiles > max_tiles:
        raise ValueError(f"a picture of {geometry.num_tiles} tiles does not fit in a bucket of {max_tiles}")
    rule, total = step.token_method, total_tokens(step, geometry, tower)
    candidates = np.zeros((max_tiles, geometry.patches_per_tile), bool)
    candidates[: geometry.num_tiles] = rule.candidates(geometry)
    order = np.full(candidates.size, -1, np.int32)
    tokens = rule.order(geometry)
    order[: len(tokens)] = tokens
    return Plan(candidates, order, np.asarray(total, np.int32), rule.extra(geometry, total, max_tiles, salt))


def stack_plans(plans: Sequence[Plan], num_images: int | None = None) -> Plan:
    """One plan with a leading axis `I`; up to `num_images`, pictures that keep nothing are added."""
    missing = 0 if num_images is None else num_images - len(plans)
    nothing = jax.tree.map(np.zeros_like, plans[0])
    nothing = nothing._replace(order=np.full_like(plans[0].order, -1))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *plans, *[nothing] * missing)


def select_tokens(step: Step, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan, slots: int) -> Selection:
    """The patches that become tokens. Pure and jit-able, with `step` and `slots` static.

    Args:
      step: a step of the stage `tokens`.
      inputs: `{role: values}` for the roles of `required_intermediates`, tiles grouped by image.
      plan: stacked plans of the images.
      slots: `K`, from `capacity`.

    Returns:
      The tokens of every picture, in token order.
    """
    plan = jax.tree.map(jnp.asarray, plan)
    with jax.named_scope("select_tokens"):
        return step.token_method.choose(inputs, plan, slots)
