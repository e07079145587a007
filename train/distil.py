"""Fitting a token scorer to lessons, and how well it ranks the tokens of a picture.

The loss is the Kullback-Leibler divergence between the shares of attention and the softmax of the scores, both over the
real cells of a picture: every picture counts the same, however many cells it has. Ranking by the scores is then ranking
by the predicted shares.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from train.optim import decays
from train.teacher import Lesson
from vila_jax.nn.scorer import Scorer


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a scorer is fitted.

    Attributes:
      hidden: its hidden width.
      steps, batch: steps, and pictures in each; every picture is seen once before any is seen again.
      learning_rate: peak of AdamW; linear warm-up over a twentieth of the steps, then cosine to a hundredth.
      seed: of the initial weights and the order of the pictures.
    """

    hidden: int = 64
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0


class Padded(NamedTuple):
    """Some lessons as arrays, padded to the longest of all (NumPy or JAX arrays)."""

    cells: Float[Any, "B n D"]
    shares: Float[Any, "B n"]
    real: Bool[Any, "B n"]


def padded(lessons: Sequence[Lesson], length: int) -> Padded:
    """A batch of lessons of at most `length` cells each."""
    counts = np.array([len(lesson.shares) for lesson in lessons])
    cells = np.zeros((len(lessons), length, lessons[0].cells.shape[1]), lessons[0].cells.dtype)
    shares = np.zeros((len(lessons), length), np.float32)
    for i, lesson in enumerate(lessons):
        cells[i, : counts[i]], shares[i, : counts[i]] = lesson
    return Padded(cells, shares, np.arange(length)[None, :] < counts[:, None])


def divergence(scores: Float[Array, "B n"], shares: Float[Array, "B n"], real: Bool[Array, "B n"]) -> Float[Array, ""]:
    """Kullback-Leibler divergence from the shares to the softmax of the scores over real cells, mean over pictures."""
    predicted = jax.nn.log_softmax(jnp.where(real, scores, -jnp.inf), axis=-1)
    terms = jax.scipy.special.xlogy(shares, shares) - shares * jnp.where(real, predicted, 0.0)
    return terms.sum(-1).mean()


def fit(
    lessons: Sequence[Lesson], recipe: Recipe, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> Scorer:
    """Trains a new scorer.

    Args:
      on_step: called with the number of steps done and the loss of the last one.
    """
    scorer = Scorer(lessons[0].cells.shape[1], recipe.hidden, rngs=nnx.Rngs(recipe.seed))
    graphdef, state = nnx.split(scorer)
    params = nnx.to_pure_dict(state)
    peak, warmup = recipe.learning_rate, math.ceil(recipe.steps / 20)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, recipe.steps, peak / 100)
    rule = optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=decays)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), rule)
    opt_state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, batch: Padded):
        def objective(params):
            return divergence(nnx.merge(graphdef, params)(batch.cells), batch.shares, batch.real)

        loss, grads = jax.value_and_grad(objective)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    length, batch = max(len(lesson.shares) for lesson in lessons), min(recipe.batch, len(lessons))
    rng, waiting = np.random.default_rng(recipe.seed), list[int]()
    for number in range(1, recipe.steps + 1):
        if len(waiting) < batch:
            waiting += rng.permutation(len(lessons)).tolist()
        chosen, waiting = waiting[:batch], waiting[batch:]
        params, opt_state, loss = step(params, opt_state, padded([lessons[i] for i in chosen], length))
        on_step(number, float(loss))
    return nnx.merge(graphdef, params)


class Ranking(NamedTuple):
    """How good the best part of the cells by some score is, mean over pictures.

    Attributes:
      recall: share of the most attended cells, as many, that are among them.
      attention: that falls on them.
    """

    recall: float
    attention: float


def ranking(scores: Sequence[Float[np.ndarray, " n"]], lessons: Sequence[Lesson], part: float = 0.2) -> Ranking:
    """Compares the best `part` of the cells of every picture by their scores and by the attention that they receive."""
    recalls, attention = [], []
    for own, lesson in zip(scores, lessons, strict=True):
        count = math.ceil(part * len(own))
        kept, best = (np.argsort(-values, kind="stable")[:count] for values in (own, lesson.shares))
        recalls.append(len(np.intersect1d(kept, best)) / count)
        attention.append(lesson.shares[kept].sum())
    return Ranking(float(np.mean(recalls)), float(np.mean(attention)))


def compare(scorer: Scorer, lessons: Sequence[Lesson], part: float = 0.2) -> dict[str, Ranking]:
    """The scorer beside the length of the cells' vectors, chance, and the attention itself."""
    rng = np.random.default_rng(0)
    scores = {
        "scorer": [np.asarray(scorer(jnp.asarray(lesson.cells))) for lesson in lessons],
        "norm": [np.linalg.norm(lesson.cells.astype(np.float32), axis=-1) for lesson in lessons],
        "random": [rng.random(len(lesson.shares)) for lesson in lessons],
        "target": [lesson.shares for lesson in lessons],
    }
    return {name: ranking(own, lessons, part) for name, own in scores.items()}
