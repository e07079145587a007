"""Whether a model has what a budget needs."""

from vila_jax.budgets.count import tokens_of_tile
from vila_jax.budgets.pipeline import required_intermediates
from vila_jax.budgets.spec import Budget
from vila_jax.budgets.tower import make_reduction
from vila_jax.nn.config import VLMConfig


def check_budget(budget: Budget, vlm: VLMConfig) -> None:
    """Refuses a budget that a model cannot meet.

    Raises:
      BudgetError: the model lacks what a method needs.
    """
    if (step := budget.step("tower")) is not None:
        make_reduction(step.tower_method, tokens_of_tile(step, vlm.vision.num_patches), vlm)
    if (step := budget.step("tokens")) is not None:
        step.token_method.check(vlm)
        required_intermediates(step, vlm.vision, vlm.vision_depth)
    if (step := budget.step("decoder")) is not None:
        step.decoder_method.check(vlm.decoder.num_layers, step.keep)
