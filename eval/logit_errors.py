"""How far the logits of one model are from those of another while both read the same answers, token by token.

The answers are the greedy ones of the first. At every place the second has read what the first has said, so that one
early difference does not make the rest incomparable; the second gives the same answer exactly where it finds every
token of it the likeliest.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vila_jax.infer.engine import Engine
from vila_jax.infer.layout import Request
from vila_jax.infer.prefill import Prompts, embed, read
from vila_jax.infer.sampler import SamplingOptions
from vila_jax.infer.vision import VisualTokens
from vila_jax.nn.config import DecoderConfig
from vila_jax.nn.decoder import Cache, empty_cache


@dataclasses.dataclass(frozen=True)
class Errors:
    """Over all tokens of all answers.

    Attributes:
      largest, mean: absolute difference of a logit.
      spread: standard deviation of the logits themselves, at each place around their mean.
      divergence: mean Kullback-Leibler divergence of the distributions of the next token, in nats.
      tokens: share of the tokens that both find the likeliest.
      answers: share of the answers of which that holds for every token.
    """

    largest: float
    mean: float
    spread: float
    divergence: float
    tokens: float
    answers: float


def greedy_answers(
    engine: Engine, requests: Sequence[Request], new_tokens: int, ends: Sequence[int] = ()
) -> list[list[int]]:
    """The likeliest tokens, end token included."""
    sampling = [SamplingOptions()] * len(requests)
    answers: list[list[int]] = [[] for _ in requests]
    for chunk in engine.generate(requests, sampling, new_tokens, budget=None, end_tokens=ends):
        for answer, more in zip(answers, chunk.tokens, strict=True):
            answer.extend(more)
    return answers


def read_answers(
    engine: Engine, requests: Sequence[Request], answers: Sequence[Sequence[int]], cache_dtype: str
) -> list[Float[np.ndarray, "S C"]]:
    """Logits at every place of the answers: from which each of their tokens is chosen.

    Args:
      cache_dtype: of keys and values, which the answers are read with.
    """
    longest = max(map(len, answers))
    layout = engine.planner.layout(requests, None, longest)
    tokens = np.zeros((len(layout.prompts.token_ids), longest), np.int32)
    for row, answer in zip(tokens, answers, strict=False):
        row[: len(answer)] = answer
    programs, visual = engine.phases.programs, engine.phases.visual_tokens(layout.tiles)
    static = {"config": engine.config.vlm.decoder, "dtype": cache_dtype, "length": layout.cache_lengths[0]}
    logits = np.asarray(programs.call("answers", _answer_logits, layout.prompts, visual, tokens, **static))
    return [own[: len(answer)] for own, answer in zip(logits, answers, strict=False)]


def _answer_logits(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompts: Prompts,
    visual: VisualTokens | None,
    answers: Int[Any, "B S"],
    *,
    config: DecoderConfig,
    dtype: str,
    length: int,
) -> Float[Array, "B S C"]:
    """Reads the prompts at once, and the answers token by token from the cache, as decoding does."""
    model = nnx.merge(graphdef, state)
    decoder, tokens = model.decoder, embed(model, prompts, visual)
    cache = empty_cache(config, len(answers), length, jnp.dtype(dtype))
    reading = read(decoder, tokens, None, None, cache)
    assert reading.cache is not None
    last = jnp.take_along_axis(reading.tokens.x, tokens.lengths[:, None, None] - 1, axis=1)

    def step(carry: tuple[Cache, Array], token: Array) -> tuple[tuple[Cache, Array], Array]:
        cache, entries = carry
        hidden, cache = decoder(decoder.embed(token[:, None]), entries[:, None], cache, entries)
        return (cache, entries + 1), decoder.logits(hidden[:, 0])

    _, later = jax.lax.scan(step, (reading.cache, tokens.lengths), jnp.asarray(answers)[:, :-1].T)
    return jnp.concatenate([decoder.logits(last), later.swapaxes(0, 1)], axis=1)


def compare(exact: Sequence[Float[np.ndarray, "_S C"]], found: Sequence[Float[np.ndarray, "_S C"]]) -> Errors:
    """The errors of logits, answer by answer."""
    same = [np.argmax(own, axis=-1) == np.argmax(other, axis=-1) for own, other in zip(exact, found, strict=True)]
    ours, theirs = (np.concatenate(list(all_), dtype=np.float64) for all_ in (exact, found))
    off = np.abs(ours - theirs)
    log_p, log_q = _log_softmax(ours), _log_softmax(theirs)
    return Errors(
        largest=float(off.max()),
        mean=float(off.mean()),
        spread=float(ours.std(axis=-1).mean()),
        divergence=float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()),
        tokens=float(np.concatenate(same).mean()),
        answers=float(np.mean([own.all() for own in same])),
    )


def _log_softmax(logits: Float[np.ndarray, "S C"]) -> Float[np.ndarray, "S C"]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
