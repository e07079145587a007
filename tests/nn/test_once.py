"""Blocks of one form are traced once, and the program is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vila_jax.nn.config import DecoderConfig
from vila_jax.nn.decoder import Decoder, DecoderBlock, empty_cache
from vila_jax.nn.layers import LayerNorm, Linear
from vila_jax.nn.once import traced_each, traced_once

X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8)), jnp.float32)


class Block(nnx.Module):
    """A linear layer and a norm; `sign` is no weight."""

    def __init__(self, seed: int, sign: int = 1):
        rngs = nnx.Rngs(seed)
        self.sign = sign
        self.linear = Linear(8, 8, (None, None), bias=True, rngs=rngs, dtype=jnp.float32)
        self.norm = LayerNorm(8, 1e-5, rngs=rngs, dtype=jnp.float32)

    def __call__(self, x, more):
        return self.sign * self.norm(x + self.linear(x)), None if more is None else more + 1


def test_the_program_is_that_of_tracing_each_and_only_one_is():
    traced = []

    def plain(block, x, more):
        traced.append(block.sign)
        return block(x, more)

    run = traced_once(plain)
    blocks = nnx.List([Block(0), Block(1), Block(2, sign=-1), Block(3)])
    graphdef, state = nnx.split(blocks)

    def forward(run, state, x):
        more = jnp.zeros(3)
        for i, block in enumerate(nnx.merge(graphdef, state)):
            with jax.named_scope(f"layer_{i}"):
                x, more = run(block, x, more)
        return x, more

    once, each = (jax.jit(forward, static_argnums=0).lower(own, state, X).compile() for own in (run, Block.__call__))
    assert traced == [1, -1]
    assert _operations(once) == _operations(each)
    for own, expected in zip(jax.tree.leaves(once(state, X)), jax.tree.leaves(each(state, X)), strict=True):
        np.testing.assert_array_equal(own, expected)


def _operations(program) -> list[str]:
    """The program without the places in Python where it was written."""
    return [line.split(", metadata=")[0] for line in program.as_text().splitlines() if " = " in line]


def test_each_is_traced_for_those_who_listen():
    heard, (graphdef, state) = [], nnx.split(nnx.List([Block(0), Block(1)]))

    @traced_once
    def run(block, x, more):
        return block(x, more)

    def forward(x):
        for block in nnx.merge(graphdef, state):
            linear = block.linear
            block.linear = lambda x, linear=linear: heard.append(x.mean()) or linear(x)
            with traced_each():
                x, _ = run(block, x, None)
        return jnp.stack(heard)

    np.testing.assert_allclose(jax.jit(forward)(X)[0], X.mean(), rtol=1e-5)


def test_other_shapes_and_absent_arguments_are_traced_anew():
    shapes = []

    @traced_once
    def run(block, x, more):
        shapes.append((x.shape, more is None))
        return block(x, more)

    block = Block(0)
    for x, more in [(X, None), (X, jnp.zeros(3)), (X[:2], None), (X, None)]:
        np.testing.assert_allclose(run(block, x, more)[0], block(x, more)[0], atol=1e-6)
    assert shapes == [((3, 8), True), ((3, 8), False), ((2, 8), True)]


@pytest.mark.parametrize(("windows", "expected"), [((), 1), ((None, 5, None, 5), 2)])
def test_layers_of_a_decoder_are_traced_once_for_each_window(monkeypatch, windows, expected):
    config = DecoderConfig(17, 8, 12, 4, 2, 1, 4, 1e-5, 32, sliding_windows=windows)
    graphdef, state = nnx.split(Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.float32))
    call, traced = DecoderBlock.__call__, []
    monkeypatch.setattr(DecoderBlock, "__call__", lambda *args, **rest: traced.append(1) or call(*args, **rest))
    cache, positions = empty_cache(config, 1, 16, jnp.float32), jnp.arange(3 + len(windows))[None]

    def read(state):
        return nnx.merge(graphdef, state)(jnp.zeros((*positions.shape, 8)), positions, cache)

    jax.eval_shape(read, state)
    assert len(traced) == expected
