"""What a step minimises: the cross entropy of the answers in a batch of packed rows, that of patch labels, or both.

Every row has a table of visual tokens of its own, made of its own tiles, so that nothing of one row is looked up for
another: on a mesh, rows stay where they are.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from train.data.labels import IGNORED
from train.data.visual import NEWLINE, plan_of
from train.losses import SoftTargets, Sums, cross_entropy
from train.recipe import Stage
from train.scenes.heads import label_sums
from train.update import Objective
from train.weights import HEADS, Flat, Structure, group_of
from vila_jax.budgets.learned import Learned
from vila_jax.infer.vision import Encoded, Pictures, Scales, Spec, VisualTokens, encode, kept_cells, visual_table
from vila_jax.nn.vlm import VLM

Batch = dict[str, Any]
"""Arrays of `train.data.packing.pack`, with an axis of rows in front."""


def make_objectives(
    structure: Structure, stage: Stage, specs: Sequence[Spec], soft: SoftTargets | None = None, shares: int = 1
) -> list[Objective]:
    """The objective of a stage under each of its budgets.

    Args:
      structure: of the model.
      specs: of the budgets' layouts, `Layout.visual.spec`.
      soft: time tokens, whose targets are soft.
      shares: groups of devices that the tokens of a batch are shared out among, each of which scores a chunk at a time.
    """
    chunk = stage.compute.chunk * shares

    def objective(trained: Flat, frozen: Flat, batch: Batch, spec: Spec) -> Sums:
        weights = {**frozen, **trained}
        own = {name: value for name, value in weights.items() if group_of(name) != HEADS}
        model = structure.model(own, dtype=stage.compute.dtype)
        if stage.objective == "answers":
            return answer_sums(model, batch, spec, soft=soft, chunk=chunk)
        encoded = encode_rows(model, batch, spec, wanted=("class_token",))
        labels = label_sums(weights, encoded.features, encoded.intermediates["class_token"][..., 0, :], batch)
        if stage.objective == "labels":
            return labels
        answers = decoded_sums(model, encoded, batch, spec, soft=soft, chunk=chunk)
        beside = stage.label_weight * labels.loss / jnp.maximum(labels.targets, 1)  # per target, as the answers' is
        return answers._replace(loss=answers.loss + beside * answers.targets)

    return [functools.partial(objective, spec=spec) for spec in specs]


def answer_sums(
    model: VLM, batch: Batch, spec: Spec | None = None, *, soft: SoftTargets | None = None, chunk: int = 1024
) -> Sums:
    """Loss, hits and number of the targets of a batch.

    Args:
      spec: of the layout that the batch was made with; None for all visual tokens of whole tiles, as they are.
      soft, chunk: see `cross_entropy`.
    """
    return decoded_sums(model, encode_rows(model, batch, spec), batch, spec, soft=soft, chunk=chunk)


def decoded_sums(
    model: VLM, encoded: Encoded, batch: Batch, spec: Spec | None, *, soft: SoftTargets | None, chunk: int
) -> Sums:
    """`answer_sums` of a batch whose tiles are encoded."""
    embedded, batch = jax.vmap(lambda encoded, row: embed_row(model, encoded, row, spec))(encoded, batch)
    hidden, _ = model.decoder(embedded, batch["positions"], segments=batch["segments"])
    return cross_entropy(model.decoder.logits, hidden, batch["targets"], soft=soft, chunk=chunk)


def encode_rows(model: VLM, batch: Batch, spec: Spec | None, wanted: tuple[str, ...] = ()) -> Encoded:
    """What the tower says of the tiles of every row: as `Encoded`, with an axis of rows in front.

    Args:
      wanted: intermediates beside those that the budget needs.
    """
    pixels = batch["pixels"]
    rows, per_row = pixels.shape[:2]

    def merged(x: Array) -> Array:
        return x.reshape(rows * per_row, *x.shape[2:])

    if spec is None:
        encoded = encode(model, merged(pixels), None, wanted=wanted, reduction=None)
    else:
        shown = None if spec.reduction is None else merged(batch["shown"])
        tiles = merged(pixels).astype(spec.dtype)
        encoded = encode(model, tiles, shown, wanted=(*spec.wanted, *wanted), reduction=spec.reduction)
    return jax.tree.map(lambda x: x.reshape(rows, per_row, *x.shape[1:]), encoded)


def embed_row(model: VLM, encoded: Encoded, row: Batch, spec: Spec | None) -> tuple[Float[Array, "T D"], Batch]:
    """What the decoder reads of a row, and the row, in which slots that a budget has left unused stand at the end."""
    visual = table_of_row(model, encoded, row, spec)
    if visual.valid is not None:
        row = close_gaps(row, visual.valid)
    newline = visual.table.shape[0] - 1
    source = jnp.where(row["source"] == NEWLINE, newline, row["source"])
    return model.splice(row["token_ids"][None], source[None], visual.table)[0], row


def table_of_row(model: VLM, encoded: Encoded, row: Batch, spec: Spec | None) -> VisualTokens:
    """The table of visual tokens of a row."""
    tiles = encoded.features.shape[0]
    scales: Scales | None = None

    def own(first: Int[Array, " I"], count: int) -> Int[Array, "I count"]:
        """So many tiles from each first one on; those behind a picture's own are never looked at."""
        return jnp.minimum(first[:, None] + jnp.arange(count, dtype=jnp.int32)[None, :], tiles - 1)

    if "scale_index" in row:
        scales = Scales(own(row["first_tile"], tiles), row["scale_index"])
    if spec is None or spec.step is None:
        return visual_table(model, encoded, scales, None, None, spec)
    plan = plan_of(row)
    images, most = plan.candidates.shape[:2]
    blocks = jnp.arange(images * most, dtype=jnp.int32).reshape(images, most)
    pictures = Pictures(own(row["first_tile"], most) if scales is None else blocks, plan)
    cells, chosen = kept_cells(model, encoded, scales, pictures, spec)
    visual = model.project(cells)
    if spec.step.method == Learned.name:
        visual = visual * gate(model, cells)[..., None].astype(visual.dtype)
    return VisualTokens(visual.reshape(-1, visual.shape[-1]), chosen.valid.reshape(-1))


def gate(model: VLM, cells: Float[Array, "I K Dm"]) -> Float[Array, "I K"]:
    """Ones whose gradient is that of the sigmoid of the scorer's scores.

    Which tokens are kept has no gradient, so a scorer that is trained learns as if every kept token were given its
    sigmoid as a weight (a straight-through estimator, arXiv 1308.3432); the tokens themselves stay as they are.
    """
    soft = jax.nn.sigmoid(model.score(jax.lax.stop_gradient(cells)))
    return 1.0 + (soft - jax.lax.stop_gradient(soft))


def close_gaps(row: Batch, valid: Bool[Array, " V"]) -> Batch:
    """Moves unused visual slots behind the end of a row, so that what follows a picture follows its last token."""
    source, segments = row["source"], row["segments"]
    used = jnp.where(source >= 0, valid[jnp.maximum(source, 0)], True)
    order = jnp.argsort(~used, stable=True)
    labels = jnp.roll(row["targets"], 1).at[0].set(IGNORED)[order]  # of a token, rather than of the one before it
    segments = jnp.where(used, segments, jnp.max(segments) + 1)[order]
    place = jnp.arange(len(order), dtype=jnp.int32)
    begins = jnp.where(segments != jnp.roll(segments, 1), place, 0).at[0].set(0)
    return row | {
        "token_ids": row["token_ids"][order],
        "source": source[order],
        "targets": jnp.roll(labels, -1).at[-1].set(IGNORED),
        "segments": segments,
        "positions": place - jax.lax.cummax(begins),
    }
