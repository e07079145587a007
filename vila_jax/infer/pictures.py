"""Prepares pictures as a budget wants to see them."""

import functools
from collections.abc import Sequence

from PIL import Image

from vila_jax.budgets import Budget, most_tokens
from vila_jax.vision.preprocess import Limit, Preprocessor, ProcessedImage
from vila_jax.vision.vila import VilaPreprocessor


def prepare(
    preprocessor: Preprocessor | VilaPreprocessor, images: Sequence[Image.Image], budget: Budget | None
) -> list[ProcessedImage]:
    """All pictures of one prompt; a budget with a step of the stage `picture` shows them smaller.

    Raises:
      ImageError: a picture is not RGB, or too elongated.
      BudgetError: the budget asks for more tokens than a picture has, or for fewer than the model can be shown.
    """
    return preprocessor.pictures(images, limit_of(budget))


def limit_of(budget: Budget | None) -> Limit | None:
    """Patches that a picture may have; None without a step of the stage `picture`."""
    step = None if budget is None else budget.step("picture")
    return None if step is None else functools.partial(most_tokens, step)
