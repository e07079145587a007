"""The losses of the stages and the jitted step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from train.config import Stage
from train.heads import LabelHeads
from vila_jax.nn.vlm import VLM

Loss = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]
Tree = Any


class Trainee(nnx.Module):
    """What is trained together: the model and the classifiers that live only during training."""

    def __init__(self, model: VLM, heads: LabelHeads):
        self.model, self.heads = model, heads


def label_loss(trainee: Trainee, batch: dict[str, Array]) -> Loss:
    """Dense supervision of the tower: what each patch shows, and what the class token should know."""
    states, _ = trainee.model.vision_tower(batch["pixels"])
    return trainee.heads.loss(states[-1], batch["colors"], batch["contents"], batch["present"])


def answer_loss(trainee: Trainee, batch: dict[str, Array], label_weight: float) -> Loss:
    """Mean cross entropy of the answer tokens, and the label loss beside it."""
    model = trainee.model
    states, _ = model.vision_tower(batch["pixels"])
    visual = model.project(states[-1][:, 1:])
    visual = model.with_newline(visual.reshape(-1, visual.shape[-1]))
    embedded = model.splice(batch["token_ids"], batch["source"], visual)
    hidden, _ = model.decoder(embedded, batch["positions"], segments=batch["segments"])
    logits, targets = model.decoder.logits(hidden), batch["targets"]
    known = targets >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    count = jnp.maximum(jnp.sum(known), 1)
    loss = jnp.sum(jnp.where(known, losses, 0.0)) / count
    right = jnp.where(known, jnp.argmax(logits, -1) == targets, False)
    labels, metrics = trainee.heads.loss(states[-1], batch["colors"], batch["contents"], batch["present"])
    metrics |= {"answer_loss": loss, "token_accuracy": jnp.sum(right) / count}
    return loss + label_weight * labels, metrics


def loss_of(stage: Stage) -> Callable[[Trainee, dict[str, Array]], Loss]:
    """The loss that a stage minimises."""
    if stage.kind == "tower":
        return label_loss
    return functools.partial(answer_loss, label_weight=stage.label_weight)


def make_step(
    graphdef: nnx.GraphDef, stage: Stage, optimizer: optax.GradientTransformation
) -> Callable[[Tree, Tree, dict[str, Array]], tuple[Tree, Tree, dict[str, Array]]]:
    """`step(params, opt_state, batch) -> (params, opt_state, metrics)`, jitted; params and state are donated."""
    loss = loss_of(stage)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Tree, opt_state: Tree, batch: dict[str, Array]) -> tuple[Tree, Tree, dict[str, Array]]:
        def objective(params: Tree) -> Loss:
            return loss(nnx.merge(graphdef, params), batch)

        (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics |= {"loss": value, "grad_norm": optax.tree.norm(grads)}
        return optax.apply_updates(params, updates), opt_state, metrics

    return step
