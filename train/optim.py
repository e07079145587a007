"""AdamW as the VILA recipe uses it: no decay on norms and biases, linear warm-up, cosine decay, clipped gradients."""

import jax
import optax

from train.config import Stage


def optimizer(stage: Stage) -> optax.GradientTransformation:
    """The optimizer of a stage."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, stage.learning_rate, stage.warmup, stage.steps, stage.learning_rate / 100
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=stage.weight_decay, mask=decays),
    )


def decays(params: optax.Params) -> optax.Params:
    """True for matrices; vectors (norms, biases, single embeddings) are not decayed."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
