"""Visual-token budgets: how many visual tokens reach the decoder, and which.

    score      a number for every patch                        (the tower's intermediates, or the method itself)
    allocate   how many tokens each tile may keep              (`allocate`)
    select     that many best patches of each tile             (`select`)
    merge      where the method does: weights of all patches   (`Selection.weights`)

A method is one page (`hired`, `random`) listed in `registry`; an engine talks to the functions of `pipeline` alone:

    step = Budget.parse("hired:0.2").step("tokens")
    wanted = required_intermediates(step, vision, depth)     # {role: name of a tower intermediate}
    plans = [make_plan(step, geometry, max_tiles) for geometry in geometries]    # host, from sizes alone
    slots = capacity(step, max_tiles, patches_per_tile)      # K, static
    indices, valid = select_tokens(step, inputs, stack_plans(plans), slots)      # device, jit-able

A step inside the tower (`TowerMethod`) has nothing to do with scores and plans: it is a `Reduction` that the tower runs
with. What it leaves are the candidates of the step behind it, or the tokens themselves.

Axes of this room: `I` images, `P` tiles of an image (padded to `max_tiles`), `N` patches of a tile, `M = P * N` patches
of an image, `K` slots.  A patch is named by its flat index `tile * N + patch`, as in `vila_jax.vision.geometry`.
"""

from vila_jax.budgets.count import (
    capacity,
    decoder_counts,
    layer_tokens,
    most_tokens,
    tokens_of_tile,
    total_tokens,
)
from vila_jax.budgets.decoder_method import DecoderMethod, Dropper
from vila_jax.budgets.method import Method, Plan, Stage, TokenMethod, TowerMethod
from vila_jax.budgets.pipeline import make_plan, required_intermediates, select_tokens, stack_plans
from vila_jax.budgets.registry import METHODS
from vila_jax.budgets.select import Selection
from vila_jax.budgets.spec import Budget, Step

__all__ = [
    "METHODS",
    "Budget",
    "DecoderMethod",
    "Dropper",
    "Method",
    "Plan",
    "Selection",
    "Stage",
    "Step",
    "TokenMethod",
    "TowerMethod",
    "capacity",
    "decoder_counts",
    "layer_tokens",
    "make_plan",
    "most_tokens",
    "required_intermediates",
    "select_tokens",
    "stack_plans",
    "tokens_of_tile",
    "total_tokens",
]
