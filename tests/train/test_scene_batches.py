"""Packed questions are the same task as questions one by one, and batches are a function of their number."""

import dataclasses
import pathlib
import runpy

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array
from PIL import Image

from train.config import Run
from train.loop import new_trainee, scene_format
from train.scene_batches import IGNORED, Batch, SceneFormat, make_batch, question_row, thin
from train.step import Trainee, answer_loss
from vila_jax.scenes import Scene, draw_scene

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "nano.py"


@pytest.fixture(scope="module")
def run() -> Run:
    return runpy.run_path(str(CONFIG))["RUN"]


@pytest.fixture(scope="module")
def form(run: Run) -> SceneFormat:
    return scene_format(run)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(7)


@nnx.jit
def row_logits(trainee: Trainee, pixels: Array, row: dict[str, Array]) -> Array:
    """Logits of one packed row."""
    model = trainee.model
    states, _ = model.vision_tower(pixels)
    visual = model.project(states[-1][:, 1:])
    visual = model.with_newline(visual.reshape(-1, visual.shape[-1]))
    embedded = model.splice(row["token_ids"], row["source"], visual)
    hidden, _ = model.decoder(embedded, row["positions"], segments=row["segments"])
    return model.decoder.logits(hidden)[0]


def test_packed_questions_do_not_see_each_other(run: Run, form: SceneFormat, scene: Scene):
    """The logits at every answer token equal those of the question packed alone."""
    trainee = new_trainee(run)
    geometry = form.preprocessor.geometry(scene.image.shape[:2])
    source = geometry.order_with_newlines(geometry.num_tiles * geometry.patches_per_tile)
    questions = list(scene.questions[:5])
    pixels = jnp.asarray(form.preprocessor(Image.fromarray(scene.image)).pixels)

    def logits(row: Batch) -> np.ndarray:
        return np.asarray(row_logits(trainee, pixels, {name: jnp.asarray(value)[None] for name, value in row.items()}))

    packed = question_row(questions, source, form, length=320)
    together = logits(packed)
    for segment, question in enumerate(questions, start=1):
        single = question_row([question], source, form, length=320)
        alone = logits(single)
        mine = (packed["segments"] == segment) & (packed["targets"] != IGNORED)
        np.testing.assert_array_equal(packed["targets"][mine], single["targets"][single["targets"] != IGNORED])
        np.testing.assert_allclose(together[mine], alone[single["targets"] != IGNORED], rtol=0, atol=1e-5)


def test_targets_are_the_answer_and_the_end_token(form: SceneFormat, scene: Scene):
    source = np.arange(10, dtype=np.int32)
    question = scene.questions[0]
    row = question_row([question], source, form, length=320)
    known = row["targets"] != IGNORED
    end = form.tokenizer.token_to_id("</s>")
    assert form.tokenizer.decode(row["targets"][known].tolist()) == question.answer
    assert row["targets"][known][-1] == end
    np.testing.assert_array_equal(row["token_ids"][1:][known[:-1]], row["targets"][known])
    assert (row["source"] >= 0).sum() == len(source)


def test_a_question_that_does_not_fit_is_left_out_whole(form: SceneFormat, scene: Scene):
    row = question_row(list(scene.questions[:8]), np.arange(10, dtype=np.int32), form, length=40)
    assert 1 <= row["segments"].max() < 8
    ends = row["targets"] == form.tokenizer.token_to_id("</s>")
    assert ends.sum() == row["segments"].max()


def test_batches_depend_on_their_number_alone(run: Run, form: SceneFormat):
    stage = dataclasses.replace(run.stages[1], scenes=2)
    first, again, other = (make_batch(stage, form, 0, step) for step in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["pixels"], other["pixels"])


def test_the_loss_counts_answer_tokens_alone(run: Run, form: SceneFormat):
    """Changing a token after an answer leaves its loss; changing a target does not."""
    stage = dataclasses.replace(run.stages[1], scenes=2, questions=2)
    trainee = new_trainee(run)
    batch = {name: jnp.asarray(value) for name, value in make_batch(stage, form, 0, 0).items()}
    loss_of = nnx.jit(lambda trainee, batch: answer_loss(trainee, batch, 0.0)[0])
    loss = loss_of(trainee, batch)
    padding = jnp.where(batch["segments"] < 0, 5, batch["token_ids"])
    same = loss_of(trainee, batch | {"token_ids": padding})
    targets = jnp.where(batch["targets"] >= 0, 0, batch["targets"])
    different = loss_of(trainee, batch | {"targets": targets})
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    assert abs(float(loss) - float(different)) > 1e-3


def test_the_exam_is_not_in_the_training_data():
    """Training draws from the train split: no handwriting of the exam is ever seen."""
    seen = {scan for seed in range(200) for thing in draw_scene(seed).objects for scan in thing.scans}
    exam = {scan for seed in range(200) for thing in draw_scene(seed, split="test").objects for scan in thing.scans}
    assert seen and exam and not seen & exam


def test_thinned_pictures_keep_their_order():
    rng = np.random.default_rng(0)
    order = rng.permutation(200).astype(np.int32)
    place = {patch: i for i, patch in enumerate(order)}
    shown = np.arange(200) < 100
    parts = [thin(order, shown, (0.1, 1.0), rng) for _ in range(50)]
    for part in parts:
        places = [place[patch] for patch in part]
        assert places == sorted(places) and len(set(places)) == len(places)
    sizes = [len(part) for part in parts]
    assert 20 <= min(sizes) < 60 and 140 < max(sizes) <= 200
    assert np.mean([shown[part].mean() for part in parts]) > 0.6
