"""Which tokens of a prompt a budget in front of the decoder leaves, in terms of the prompt that transformers makes."""

import numpy as np

import vila_jax
from tests.infer.checkpoints import Written
from vila_jax.budgets import Budget


def places_left(theirs: Written, ours: vila_jax.Model, prompt: str, images: list, budget: str) -> list[int]:
    """Where the tokens that are left stand in the ids of transformers' own processor."""
    [ids] = theirs.processor(text=[prompt], images=images or None)["input_ids"]
    left = []
    for picture in images:
        [image] = ours.preprocessor.pictures([picture])
        kept = ours.engine.selection(image, budget=Budget.parse(budget))
        left += np.isin(image.geometry.order_with_newlines(-1), kept).tolist()
    is_visual = np.asarray(ids) == ours.config.image_token_id
    assert len(left) == is_visual.sum()
    stays = ~is_visual
    stays[is_visual] = left
    return np.flatnonzero(stays).tolist()
