"""Watched programs: what is counted in them, against XLA's own count and the formulas of `vila_jax.bench.flops`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image

from vila_jax.bench import flops
from vila_jax.bench.meter import metered
from vila_jax.bench.traced import traced_flops
from vila_jax.infer.programs import Programs
from vila_jax.nn.config import DecoderConfig

PROMPT = "USER: <image>\nhow many ? ASSISTANT:"


def _picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))


def _watched(model, budget):
    """The first call of every program, by name."""
    with metered(model.engine) as meter, meter.watch() as calls:
        model.generate(PROMPT, [_picture()], budget=budget, max_new_tokens=3, ignore_eos=True)
    return {call.name: call for call in reversed(calls)}


A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
ONE = 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: A @ B, ONE),
        (lambda: jnp.einsum("bij,bjk->bik", jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))), 4 * ONE),
        (lambda: lax.scan(lambda x, _: (x, A @ x), B, None, length=6), 6 * ONE),
        (lambda: lax.map(lambda x: A @ x, jnp.ones((4, 5, 7))), 4 * ONE),
        (lambda: lax.while_loop(lambda x: x.sum() < 0, lambda x: x + (A @ x).sum(), B), ONE),
        (lambda: lax.cond(B.sum() > 0, lambda: A @ B, lambda: A @ B + A @ B), 2 * ONE),
        (lambda: jax.jit(lambda x: A @ x)(B) + 1, ONE),
        (lambda: lax.conv(jnp.ones((1, 3, 8, 8)), jnp.ones((5, 3, 2, 2)), (2, 2), "VALID"), 2 * 5 * 16 * 3 * 4),
        (lambda: jnp.exp(A), 0),
    ],
)
def test_products_are_counted_as_written_out_by_hand(function, expected):
    assert traced_flops(function) == expected


@pytest.mark.parametrize("budget", [None, "hired:0.2", "random:40"])
def test_programs_agree_with_what_xla_counts(wide, budget, monkeypatch):
    """Norms, softmax and activations, which XLA counts as well, are less than 3 % of this model."""
    counted, compile_own = {}, Programs.compile

    def compile_and_count(self, name, function, *args, donate=(), **static):
        lowered = jax.jit(function, static_argnames=("graphdef", *static)).lower(
            self.graphdef, self.state, *args, **static
        )
        counted[name] = lowered.cost_analysis()["flops"]
        return compile_own(self, name, function, *args, donate=donate, **static)

    monkeypatch.setattr(Programs, "compile", compile_and_count)
    calls = _watched(wide, budget)
    assert calls.keys() == {"vision tower", "visual tokens", "prefill", "decode"}
    for name, call in calls.items():
        assert call.program.flops == pytest.approx(counted[name], rel=0.03), name


def unread_flops(config: DecoderConfig, tokens: int) -> int:
    """What prefill leaves out of the last block: queries, attention and MLP for all tokens but the last one."""
    weights = 2 * config.hidden_size * config.num_heads * config.head_dim
    weights += 3 * config.hidden_size * config.intermediate_size
    pairs = flops.visible_pairs(tokens - 1, config.sliding_window(config.num_layers - 1))
    return 2 * (tokens - 1) * weights + 4 * config.num_heads * config.head_dim * pairs


def test_a_budgeted_prefill_is_that_of_a_shorter_sequence(wide):
    config = wide.config.vlm
    lengths, counted = [], []
    for budget in (None, "hired:0.2"):
        calls = _watched(wide, budget)
        lengths.append(calls["prefill"].args[0].token_ids.shape[1])
        counted.append(calls["prefill"].program.flops)
        assert calls["vision tower"].program.flops == pytest.approx(flops.tower_flops(config), rel=0.03)
    assert lengths[0] - lengths[1] >= 0.7 * 196
    for length, own in zip(lengths, counted, strict=True):
        # the visible half of attention, and the last token alone behind the keys and values of the last block
        least = flops.decoder_flops(config.decoder, length) - unread_flops(config.decoder, length)
        most = least + config.decoder.num_layers * 2 * length**2 * config.decoder.hidden_size  # all of it
        assert least <= own <= most


def test_watching_changes_nothing_and_ends(narrow):
    question = "USER: <image>\nHow many shapes are there? ASSISTANT:"
    ask = {"prompt": question, "images": [_picture()], "budget": "hired:0.2", "max_new_tokens": 4}
    own, answer = narrow.engine.phases.programs, narrow.generate(**ask)
    with metered(narrow.engine) as meter:
        assert narrow.generate(**ask).token_ids == answer.token_ids
        with meter.watch() as calls:
            assert narrow.generate(**ask).token_ids == answer.token_ids
        narrow.generate(**ask)  # not watched
    assert [call.name for call in calls][:3] == ["vision tower", "visual tokens", "prefill"]
    assert all(call.seconds > 0 and call.program.compile_time > 0 for call in calls)
    assert narrow.engine.phases.programs is own
    assert jax.config.values["jax_enable_compilation_cache"]


def test_programs_are_compiled_once(narrow, count_compilations):
    ask = {"prompt": PROMPT, "images": [_picture()], "budget": "random:0.2", "max_new_tokens": 4}
    with metered(narrow.engine):
        narrow.generate(**ask)
        with count_compilations() as count:
            narrow.generate(**ask)
        assert count() == 0
