"""Some minutes of nano's last stage, to see a run: progress, checkpoints, plot, export.

    make train-demo

It starts from the finished model, so that the answers stay right while the loss is already low.
"""

import dataclasses

from configs.nano import sft
from train.recipe import Safety
from vila_jax import assets

STAGE = dataclasses.replace(
    sft.STAGE,
    name="nano/demo",
    start=str(assets.nano()),
    learning_rate={group: rate / 10 for group, rate in sft.STAGE.learning_rate.items()},
    budgets=("full", "hired:0.2"),
    steps=100,
    safety=Safety(save_every=25),
)
