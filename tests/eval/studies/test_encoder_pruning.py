"""Pruning in the encoder: the mask means what the shorter sequence means, and the study runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from eval.__main__ import main
from eval.studies.measure import xla_flops
from eval.studies.pruned_encoder import (
    PrunedEncoder,
    Schedule,
    Shape,
    Threshold,
    calibrate,
    encoder_flops,
    geometric,
    kept,
)
from eval.studies.something_red import draw, mirrored

SHAPE = Shape(side=48, patch=8, width=16, heads=2, layers=3)


@pytest.fixture(scope="module")
def model():
    return PrunedEncoder(SHAPE, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def pictures():
    return jnp.array(np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), np.uint8))


@pytest.fixture(scope="module")
def forward(model):
    """The compiled model; a schedule is static, a threshold is not."""
    graph, state = nnx.split(model)

    def run(pictures, rule):
        return nnx.merge(graph, state)(pictures, rule)

    masked, scheduled = jax.jit(run), jax.jit(run, static_argnums=1)
    return lambda pictures, rule: (masked if isinstance(rule, Threshold) else scheduled)(pictures, rule)


def test_a_masked_picture_gives_what_a_shortened_one_gives(forward, pictures):
    for picture in pictures:
        one, counts = picture[None], (20, 7)
        scheduled, norms = forward(one, Schedule(counts))
        # Any level between the last norm that stays and the first that goes; tokens that are gone have none.
        ranked = [np.sort(np.asarray(own[0]))[::-1] for own in norms]
        levels = [(own[count - 1] + own[count]) / 2 for own, count in zip(ranked, counts, strict=True)]
        rule = Threshold(jnp.array(levels))
        masked, seen = forward(one, rule)
        np.testing.assert_allclose(masked, scheduled, atol=1e-5)
        assert kept(rule, [np.asarray(own) for own in seen]).tolist() == [list(counts)]
    assert not np.allclose(scheduled, forward(one, None)[0], atol=1e-5)


def test_the_largest_token_stays_whatever_the_level(forward, pictures):
    rule = Threshold(jnp.array([1e9, 1e9]))
    logits, norms = forward(pictures, rule)
    assert np.isfinite(logits).all()
    assert kept(rule, [np.asarray(own) for own in norms]).tolist() == [[1, 1]] * len(pictures)
    np.testing.assert_allclose(logits, forward(pictures, Schedule((1, 1)))[0], atol=1e-5)


def test_a_schedule_that_keeps_all_is_no_pruning(model, pictures):
    everything = Schedule((SHAPE.tokens,) * 2)
    np.testing.assert_array_equal(model(pictures, everything)[0], model(pictures, None)[0])


def test_the_random_control_depends_on_the_key_alone(model, pictures):
    rule = Schedule((8, 4), by="random")
    first, again, other = (model(pictures, rule, jax.random.key(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    with pytest.raises(ValueError, match="needs a key"):
        model(pictures, rule)


def test_calibrated_levels_keep_as_many_in_the_mean(model, forward, pictures):
    rule = calibrate(nnx.split(model), np.asarray(pictures), (20, 7), batch=2)
    _, norms = forward(pictures, rule)
    np.testing.assert_allclose(kept(rule, [np.asarray(own) for own in norms]).mean(axis=0), (20, 7), atol=0.21)


def test_flops_are_those_of_the_compiled_program_and_a_mask_saves_none():
    shape = Shape(side=64, patch=8, width=128, heads=1, layers=3)
    graph, state = nnx.split(PrunedEncoder(shape, rngs=nnx.Rngs(0)))
    picture = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    counts = geometric(shape, 0.5)
    assert counts == (32, 16)

    def counted(rule):
        return xla_flops(lambda state, picture: nnx.merge(graph, state)(picture, rule)[0], state, picture)

    full, short, masked = counted(None), counted(Schedule(counts)), counted(Threshold(jnp.zeros(2)))
    # XLA counts norms, softmax and activations as well: a few per cent at this width.
    assert 1 < full / encoder_flops(shape, (64, 64)) < 1.1
    assert 1 < short / encoder_flops(shape, counts) < 1.1
    assert masked >= full


def test_the_task_is_balanced_and_its_splits_differ():
    train, test = draw(9, "train"), draw(8, "test")
    assert (train.answers.sum(), test.answers.sum()) == (5, 4)
    assert train.pictures.shape == (9, 96, 96, 3)
    assert not (train.pictures[:, None] == test.pictures[None]).all(axis=(2, 3, 4)).any()
    flipped = mirrored(np.random.default_rng(0), train.pictures)
    np.testing.assert_array_equal(np.sort(flipped, axis=None), np.sort(train.pictures, axis=None))


def test_the_study_runs_writes_its_files_and_goes_on_where_it_was_stopped(tmp_path):
    arguments = ["study", "encoder_pruning", "--quick", "--seeds", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    facts = json.loads((tmp_path / "encoder_pruning.json").read_text())
    assert facts["command"] == "python -m eval study encoder_pruning --seeds 2 --quick"
    rows = {row["form"]: row for row in facts["rows"]}
    assert list(rows) == ["baseline", "schedule", "threshold", "untrained schedule", "random"]
    assert rows["baseline"]["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert rows["schedule"]["flops"] < rows["baseline"]["flops"]
    assert rows["schedule"]["xla_flops"] < rows["baseline"]["xla_flops"] <= rows["threshold"]["xla_flops"]
    page = (tmp_path / "encoder_pruning.md").read_text()
    assert "| threshold (mask) |" in page and str(tmp_path) not in page
    Image.open(tmp_path / "encoder_pruning.png").load()
    assert not list(tmp_path.glob("*.partial*"))
