"""What the study `vila_findings` asks a model: about pictures, by examples alone, and without pictures."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from eval.nano_fewshot import SHOTS, Task, ask, draw_tasks, losses
from eval.studies.findings_arms import Settings
from train.data.labels import IGNORED, conversation_tokens
from train.data.records import Conversation
from train.losses import Sums, cross_entropy
from train.scenes.instructions import instruction
from train.scenes.source import DrawnRecords
from vila_jax.exam.examiner import Examiner, Setting
from vila_jax.exam.items import Item, draw_exam
from vila_jax.model import Model, from_pretrained

Marks = dict[str, list[float]]
"""Of every measure, a value for every item: 1 for a right answer, 0 for another; of losses nats per token."""

MOST = max(SHOTS)
"""Examples before a task."""

_HELD_OUT = DrawnRecords("held-out instructions", instruction)


def measure(folder: Path, settings: Settings, *, questions: bool) -> Marks:
    """Asks a checkpoint everything.

    Args:
      questions: whether it is asked about pictures; what was never instructed would not know how to answer.
    """
    model = from_pretrained(str(folder), dtype=jnp.float32)
    marks: Marks = {}
    if questions:
        replies = Examiner(model, batch=settings.batch).replies(_questions(settings.questions), Setting("full"))
        marks["questions"] = [float(reply.right) for reply in replies]
    answers = ask(model, _tasks(settings.tasks), MOST, settings.batch)
    marks["examples"] = [float(answer.right) for answer in answers]
    marks["examples_loss"] = losses(model, _tasks(settings.tasks), MOST, settings.batch)
    return marks | text_marks(model, _instructions(settings.instructions))


@functools.cache
def _questions(count: int) -> list[Item]:
    return draw_exam(count)


@functools.cache
def _tasks(count: int) -> list[Task]:
    """Tasks in forms that no training document has."""
    return [task for task in draw_tasks(2 * count) if task.held_out]


@functools.cache
def _instructions(count: int) -> list[Conversation]:
    """Single instructions, drawn apart from those of training."""
    drawn = (_HELD_OUT[i] for i in range(count))
    return [Conversation(record.id, record.messages[:2]) for record in drawn if isinstance(record, Conversation)]


def text_marks(model: Model, records: Sequence[Conversation]) -> Marks:
    """Whether each answer is what the model would write, its end included, and the loss of a token of it.

    The answers are not written out: greedy decoding writes an answer exactly if every token of it is the most probable
    one behind those before it.
    """
    laid = [conversation_tokens(model.form, record.messages, model.style) for record in records]
    shape = len(laid), max(len(ids) for ids, _ in laid)
    token_ids, targets = np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
    for row, (ids, labels) in enumerate(laid):
        token_ids[row, : len(ids)] = ids
        targets[row, : len(ids) - 1] = labels[1:]
    programs = model.engine.phases.programs
    sums = jax.device_get(programs.call("text answers", _answer_sums, jnp.asarray(token_ids), jnp.asarray(targets)))
    return {
        "text": (sums.right == sums.targets).astype(float).tolist(),
        "loss": (sums.loss / sums.targets).astype(float).tolist(),
    }


def _answer_sums(
    graphdef: nnx.GraphDef, state: nnx.State, token_ids: Int[Array, "B T"], targets: Int[Array, "B T"]
) -> Sums:
    """Totals of every row; what pads a row stands behind all that counts, and is seen by none of it."""
    decoder = nnx.merge(graphdef, state).decoder
    positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1], dtype=jnp.int32), token_ids.shape)
    hidden, _ = decoder(decoder.embed(token_ids), positions)
    return jax.vmap(functools.partial(cross_entropy, decoder.logits))(hidden, targets)
