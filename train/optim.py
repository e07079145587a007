"""Optimizers: linear warm-up, cosine decay, clipped gradients, no decay on norms and biases.

AdamW is what the VILA recipe uses. Muon (Jordan, 2024), with the update size of AdamW as in Liu et al., "Muon is
Scalable for LLM Training" (arXiv 2502.16982), learns from nothing in fewer steps; it takes the matrices of the blocks
and leaves embeddings, heads and vectors to AdamW.
"""

from typing import Any

import jax
import optax

from train.config import Stage

_ROWS_ARE_OUTPUTS = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)


def optimizer(stage: Stage) -> optax.GradientTransformation:
    """The optimizer of a stage."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, stage.learning_rate, stage.warmup, stage.steps, stage.learning_rate / 100
    )
    if stage.optimizer == "muon":
        rule = optax.contrib.muon(
            schedule,
            weight_decay=stage.weight_decay,
            adam_b2=0.98,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=block_matrices,
        )
    else:
        rule = optax.adamw(schedule, b2=0.98, weight_decay=stage.weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(1.0), rule)


def decays(params: optax.Params) -> optax.Params:
    """True for matrices; vectors (norms, biases, single embeddings) are not decayed."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def block_matrices(params: optax.Params) -> Any:
    """What Muon trains: the weights `[out, in]` inside of blocks and projector; None for all else."""

    def numbers(path: tuple[Any, ...], p: Any) -> Any:
        return _ROWS_ARE_OUTPUTS if p.ndim == 2 and jax.tree_util.DictKey("layers") in path else None

    return jax.tree_util.tree_map_with_path(numbers, params)
