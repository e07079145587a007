"""Log-likelihoods of given continuations: every row is read once, and nothing is sampled.

    context  <s> The sky is      continuation  very blue
    read     <s> The sky is very
    targets              │   └─ blue    0 tokens before the end of what is read
                         └───── very    1 token before it

Continuations of one context that differ in their last token alone, as the letters of a multiple choice do, are targets
of one row.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vila_jax.errors import PromptError
from vila_jax.infer.buckets import count_bucket
from vila_jax.infer.decoder_plan import Kept, Schedule, SparseSchedule
from vila_jax.infer.layout import Request
from vila_jax.infer.prefill import Prompts, embed, read
from vila_jax.infer.vision import VisualTokens

CHUNK = 64
"""Targets of a row whose scores of the whole vocabulary are held at a time; a power of two."""


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How probable a model finds a continuation.

    Attributes:
      log_probs: natural logarithm of the probability of each of its tokens.
      is_greedy: whether every token is the most probable one.
    """

    log_probs: tuple[float, ...]
    is_greedy: bool

    @property
    def total(self) -> float:
        """The log-likelihood of the whole."""
        return sum(self.log_probs)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A row to be read, and the continuations that are read off it.

    Attributes:
      request: context, and the continuations without their last token.
      continuations: ids; they differ in the last.
      numbers: which of all continuations each of them is.
    """

    request: Request
    continuations: list[Sequence[int]]
    numbers: list[int]

    @property
    def targets(self) -> list[tuple[int, int]]:
        """For every token of every continuation, how many tokens before the end it is predicted, and its id."""
        return [(len(ids) - 1 - i, token) for ids in self.continuations for i, token in enumerate(ids)]


class Targets(NamedTuple):
    """Tokens whose probabilities are asked for; see `Probe.targets`. Rows are filled up with anything."""

    back: Int[Any, "B Q"]
    token: Int[Any, "B Q"]


def make_probes(requests: Sequence[Request], continuations: Sequence[Sequence[int]]) -> list[Probe]:
    """As few rows as will do for the continuations of these contexts, in the order in which they are first needed.

    Raises:
      PromptError: a continuation is empty, or there are not as many as contexts.
    """
    if len(requests) != len(continuations):
        raise PromptError(f"{len(continuations)} continuations for {len(requests)} contexts", where="continuations")
    probes: dict[Any, Probe] = {}
    for number, (request, ids) in enumerate(zip(requests, continuations, strict=True)):
        if not ids:
            raise PromptError("it is empty", where=f"continuation {number}", fix="Give it at least one token.")
        read_ids = (*request.token_ids, *ids[:-1])
        key = read_ids, len(ids), tuple(map(id, request.media))
        probe = probes.setdefault(key, Probe(Request(read_ids, request.media), [], []))
        probe.continuations.append(ids)
        probe.numbers.append(number)
    return list(probes.values())


def pack_targets(probes: Sequence[Probe]) -> Targets:
    """The targets of a batch; its sizes are rounded up to buckets."""
    rows = [probe.targets for probe in probes]
    shape = count_bucket(len(rows)), count_bucket(max(map(len, rows)))
    back, token = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        back[i, : len(row)], token[i, : len(row)] = np.transpose(row)
    return Targets(back, token)


def unpack(
    probes: Sequence[Probe], log_probs: Float[np.ndarray, "B Q"], best: Bool[np.ndarray, "B Q"]
) -> list[list[Likelihood]]:
    """For every probe, what was found of its continuations."""
    found = []
    for probe, own_probs, own_best in zip(probes, log_probs, best, strict=False):
        ends = np.cumsum([len(ids) for ids in probe.continuations])[:-1]
        parts = zip(*(np.split(own[: len(probe.targets)], ends) for own in (own_probs, own_best)), strict=True)
        found.append([Likelihood(tuple(map(float, probs)), bool(greedy.all())) for probs, greedy in parts])
    return found


def in_order(probes: Sequence[Probe], found: Sequence[Sequence[Likelihood]]) -> list[Likelihood]:
    """What was found of all continuations, in the order in which `make_probes` was given them."""
    numbered = {
        number: likelihood
        for probe, own in zip(probes, found, strict=True)
        for number, likelihood in zip(probe.numbers, own, strict=True)
    }
    return [numbered[number] for number in range(len(numbered))]


def target_log_probs(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompts: Prompts,
    visual: VisualTokens | None,
    targets: Targets,
    kept: Kept | None = None,
    *,
    schedule: Schedule | SparseSchedule | None = None,
) -> tuple[Float[Array, "B Q"], Bool[Array, "B Q"]]:
    """Log-probabilities of the targets in float32, and whether each is the most probable token of its place."""
    model = nnx.merge(graphdef, state)
    left = read(model.decoder, embed(model, prompts, visual), schedule, kept).tokens
    places = jnp.maximum(left.lengths[:, None] - 1 - targets.back, 0)
    hidden = jnp.take_along_axis(left.x, places[:, :, None], axis=1)

    def one(part: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, token = part
        logits = model.decoder.logits(hidden)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        return jnp.take_along_axis(log_p, token[:, :, None], axis=-1)[:, :, 0], jnp.argmax(logits, axis=-1) == token

    batch, asked = targets.token.shape
    columns = min(asked, CHUNK)
    parts = (x.reshape(batch, -1, columns, *x.shape[2:]).swapaxes(0, 1) for x in (hidden, jnp.asarray(targets.token)))
    log_probs, best = jax.lax.map(one, tuple(parts))
    return log_probs.swapaxes(0, 1).reshape(batch, asked), best.swapaxes(0, 1).reshape(batch, asked)
