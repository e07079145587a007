"""What a step minimises: the cross entropy of the answers in a batch of packed rows."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from train.data.samples import NEWLINE
from train.losses import SoftTargets, Sums, cross_entropy
from vila_jax.nn.vlm import VLM

Batch = dict[str, Any]
"""Arrays of `train.data.packing.pack`, with an axis of rows in front."""


def visual_table(model: VLM, pixels: Float[Array, "B R 3 h w"]) -> Float[Array, "B V D"]:
    """The visual tokens of the tiles of every row, and the newline, if the model has one."""
    features, _ = model.encode(pixels.reshape(-1, *pixels.shape[2:]))
    visual = model.project(model.merge(features))
    return jax.vmap(model.with_newline)(visual.reshape(len(pixels), -1, visual.shape[-1]))


def splice(
    model: VLM, token_ids: Int[Array, "B T"], source: Int[Array, "B T"], table: Float[Array, "B V D"]
) -> Float[Array, "B T D"]:
    """Embeddings of text and visual tokens. Every row reads a table of its own: on a mesh none is sent to another.

    Args:
      source: row of the own table, -1 for text, `NEWLINE` for its last row.
    """
    index = jnp.where(source == NEWLINE, table.shape[1] - 1, source)
    return jax.vmap(model.splice)(token_ids[:, None], index[:, None], table)[:, 0]


def answer_sums(model: VLM, batch: Batch, *, soft: SoftTargets | None = None, chunk: int = 1024) -> Sums:
    """Loss, hits and number of the targets of a batch; see `cross_entropy` for the options."""
    table = visual_table(model, batch["pixels"])
    embedded = splice(model, batch["token_ids"], batch["source"], table)
    hidden, _ = model.decoder(embedded, batch["positions"], segments=batch["segments"])
    return cross_entropy(model.decoder.logits, hidden, batch["targets"], soft=soft, chunk=chunk)
