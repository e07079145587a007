"""Some minutes of training, to see a run: progress, checkpoints, plot, export.

    make train-demo

It goes on with the finished model, on questions alone, so that the answers stay right while the loss is already low.
"""

import dataclasses

from configs.nano import sft
from train.recipe import Data, Safety
from vila_jax import assets

STAGE = dataclasses.replace(
    sft.STAGE,
    name="nano/demo",
    start=str(assets.nano()),
    learning_rate={"tower": 1e-4, "projector": 2e-4, "decoder": 2e-4},
    objective="answers",
    data=Data("scenes:questions"),
    budgets=("full", "hired:0.2"),
    steps=100,
    safety=Safety(save_every=25),
)
