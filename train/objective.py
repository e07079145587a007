"""What a step minimises: the cross entropy of the answers in a batch of packed rows."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from train.data.samples import NEWLINE
from train.losses import SoftTargets, Sums, cross_entropy
from vila_jax.nn.vlm import VLM

Batch = dict[str, Any]
"""Arrays of `train.data.packing.pack`, with an axis of rows in front."""


def visual_table(model: VLM, pixels: Float[Array, "B R 3 h w"]) -> Float[Array, "V D"]:
    """The visual tokens of all tiles of all rows, and the newline, if the model has one."""
    features, _ = model.encode(pixels.reshape(-1, *pixels.shape[2:]))
    visual = model.project(model.merge(features))
    return model.with_newline(visual.reshape(-1, visual.shape[-1]))


def table_index(source: Int[Array, "B T"], per_row: int) -> Int[Array, "B T"]:
    """Rows of the table that visual slots point to, each row of the batch having `per_row` of it; -1 for text."""
    rows = source.shape[0]
    index = source + per_row * jnp.arange(rows, dtype=source.dtype)[:, None]
    return jnp.where(source == NEWLINE, rows * per_row, jnp.where(source >= 0, index, -1))


def answer_sums(model: VLM, batch: Batch, *, soft: SoftTargets | None = None, chunk: int = 1024) -> Sums:
    """Loss, hits and number of the targets of a batch; see `cross_entropy` for the options."""
    table = visual_table(model, batch["pixels"])
    rows = batch["source"].shape[0]
    per_row = (table.shape[0] - (model.newline is not None)) // rows
    embedded = model.splice(batch["token_ids"], table_index(batch["source"], per_row), table)
    hidden, _ = model.decoder(embedded, batch["positions"], segments=batch["segments"])
    return cross_entropy(model.decoder.logits, hidden, batch["targets"], soft=soft, chunk=chunk)
