"""The tiny Llama on which the reference implementations of methods inside the decoder were run."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from tests.nn.oracle import with_weights_of
from vila_jax.budgets import Step
from vila_jax.infer.decoder_plan import Schedule, plan_decoder
from vila_jax.infer.shorten import Tokens, run_shortened
from vila_jax.nn.config import DecoderConfig
from vila_jax.nn.decoder import Decoder, empty_cache

CONFIG = DecoderConfig(8, 32, 64, 6, 4, 4, 8, 1e-5, 512)
ROOM = 192  # a prompt of 161 tokens, padded


@dataclasses.dataclass(frozen=True)
class Golden:
    """A golden file: its arrays, the model that it was made with, and the prompt."""

    arrays: dict[str, np.ndarray]
    graphdef: nnx.GraphDef
    state: nnx.State

    @property
    def embedded(self) -> np.ndarray:
        return self.arrays["inputs_embeds"][0]

    @property
    def visual(self) -> np.ndarray:
        first = int(self.arrays["sys_len"])
        index = np.arange(len(self.embedded))
        return (index >= first) & (index < first + int(self.arrays["image_len"]))


@functools.cache
def load(file: pathlib.Path) -> Golden:
    arrays = dict(np.load(file))
    weights = {"model." + k[2:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w.")}
    table = torch.zeros(CONFIG.vocab_size, CONFIG.hidden_size)  # prompts are given as embeddings
    weights |= {"model.embed_tokens.weight": table, "lm_head.weight": table}

    class Source:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return weights

    build = functools.partial(Decoder, CONFIG, dtype=jnp.float32)
    made = with_weights_of(Source(), lambda rngs: build(rngs=rngs), "decoder.", "language_model.")
    return Golden(arrays, *made)


def pad(rows: list[tuple[np.ndarray, np.ndarray]]) -> Tokens:
    """Rows of embeddings `[T, D]` with their masks of visual tokens, padded on the right with noise."""
    lengths = np.array([len(x) for x, _ in rows], np.int32)
    x = np.random.default_rng(9).standard_normal((len(rows), ROOM, CONFIG.hidden_size), np.float32)
    visual = np.zeros((len(rows), ROOM), bool)
    for i, (own, mask) in enumerate(rows):
        x[i, : len(own)], visual[i, : len(own)] = own, mask
    positions = np.minimum(np.arange(ROOM, dtype=np.int32)[None], lengths[:, None] - 1)
    source = np.where(visual, np.cumsum(visual, axis=1) - 1, -1).astype(np.int32)
    return Tokens(*map(jnp.asarray, (x, positions, visual, source, lengths)))


@functools.partial(jax.jit, static_argnums=(0, 3, 5))
def _run(graphdef: nnx.GraphDef, state: nnx.State, tokens: Tokens, schedule: Schedule, kept: Any, caches: tuple):
    decoder = nnx.merge(graphdef, state)
    cache = empty_cache(CONFIG, len(tokens.lengths), caches, jnp.float32)
    left, cache, lost = run_shortened(decoder, tokens, schedule, kept, cache)
    return left._replace(x=decoder.norm(left.x)), cache, lost


def run(golden: Golden, budget: str, rows: list[tuple[np.ndarray, np.ndarray]]):
    """Tokens that are left, hidden states ready for the head; the cache; tokens lost."""
    tokens, step = pad(rows), Step.parse(budget)
    plan = plan_decoder(
        step,
        CONFIG.num_layers,
        [(int((~mask).sum()), int(mask.sum())) for _, mask in rows],
        batch=len(rows),
        full=(ROOM, 256),
        question=11,
        new_tokens=8,
        limit=512,
    )
    return _run(golden.graphdef, golden.state, tokens, plan.schedule, plan.kept, plan.cache_lengths)
