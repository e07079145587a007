"""Labels of the tiles of drawn records, against the pixels that the tower is given."""

import dataclasses
import importlib

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.nano.model import PREPROCESSOR
from tests.nano import export_narrow
from train.data.packing import Axis, pack
from train.data.samples import make_layouts
from train.objective import make_objectives
from train.recipe import Rows, Stage
from train.scenes import DRAWN
from train.scenes.heads import initial_heads
from train.scenes.labelled import NAMES, LabelledLayout, with_labels
from train.weights import Structure, group_of
from vila_jax.errors import ConfigError
from vila_jax.hf.load import load_state
from vila_jax.model import from_pretrained
from vila_jax.scenes import COLOR_LABELS, CONTENT_LABELS, NUM_CONTENTS
from vila_jax.scenes.world import COLORS, SHAPES

STAGE: Stage = importlib.import_module("configs.nano.sft").STAGE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return from_pretrained(str(export_narrow(tmp_path_factory.mktemp("labelled") / "narrow")))


@pytest.fixture(scope="module")
def layout(model):
    stage = dataclasses.replace(STAGE, budgets=("full",))
    return with_labels(stage, make_layouts(stage, model.config, model.form, model.style, model.preprocessor))[0]


def patches(pixels):
    """Mean colour of every patch of a tile as bytes, `[N, 3]`."""
    mean, std = (np.array(PREPROCESSOR[f"image_{name}"])[:, None, None] for name in ("mean", "std"))
    colors = (pixels * std + mean) * 255
    return colors.reshape(3, 6, 8, 6, 8).mean((2, 4)).reshape(3, 36).T


def check(laid):
    """Patches inside of a shape have the colour that they are labelled with."""
    checked = 0
    for pixels, colors, contents, present in zip(laid.pixels, *(laid.extras[name] for name in NAMES), strict=True):
        found = {int(c * NUM_CONTENTS + k) for c, k in zip(colors, contents, strict=True) if c}
        assert set(np.flatnonzero(present)) == found
        for mean, color, content in zip(patches(pixels), colors, contents, strict=True):
            if CONTENT_LABELS[content] in SHAPES:
                distance = {name: np.linalg.norm(mean - value) for name, value in COLORS.items()}
                near = distance[COLOR_LABELS[color]] < 60  # the patch is filled
                checked += near
                if near:
                    assert min(distance, key=distance.__getitem__) == COLOR_LABELS[color]
    return checked


@pytest.mark.parametrize("name", ["scenes:captions", "scenes:documents", "scenes:questions", "scenes:fewshot"])
def test_labels_are_of_what_the_tiles_show(layout, name):
    dataset = DRAWN[name]()
    laid = [layout(dataset[i]) for i in range(12)]
    for one in laid:
        assert {len(one.extras[name]) for name in NAMES} == {len(one.pixels)}
    assert sum(check(one) for one in laid) > 20


def test_labels_follow_pictures_into_another_order(layout):
    record = DRAWN["scenes:documents"]()[0]
    count = len(record.pictures)
    turned = dataclasses.replace(record, matched=tuple(reversed(record.matched)))
    straight, reverse = layout(record), layout(turned)
    assert count > 1 and not np.array_equal(straight.pixels, reverse.pixels)
    first = 2  # tiles of a picture of one: the overview, and itself
    assert record.id.split(" ")[1].startswith("single.")
    np.testing.assert_array_equal(straight.pixels[:first], reverse.pixels[-first:])
    for name in NAMES:
        np.testing.assert_array_equal(straight.extras[name][:first], reverse.extras[name][-first:])


def test_labels_of_cut_pictures_are_cut(layout):
    record = DRAWN["scenes:fewshot"]()[1]
    record = dataclasses.replace(record, sentences=("red " * 140, *record.sentences[1:]))
    narrow = dataclasses.replace(layout, shape=dataclasses.replace(layout.shape, tokens=130))
    whole, cut = layout(record), narrow(record)  # the second picture stands behind the end of the row
    assert isinstance(narrow, LabelledLayout) and 0 < len(cut.pixels) < len(whole.pixels)
    for name in NAMES:
        np.testing.assert_array_equal(cut.extras[name], whole.extras[name][: len(cut.pixels)])


def test_text_alone_has_no_labels_and_packs_with_pictures(layout):
    text, pictures = DRAWN["scenes:text"](), DRAWN["scenes:captions"]()
    samples = grain.MapDataset.source([text[0], pictures[0], text[1]]).map(lambda r: layout(r).features())
    per_unit = layout.visual.tokens_per_unit
    [row] = pack(samples.to_iter_dataset(), layout.shape, per_unit, axes=layout.axes)
    own = layout(pictures[0])
    tiles = len(own.pixels)
    for name in NAMES:
        np.testing.assert_array_equal(row[name][:tiles], own.extras[name])
        assert np.all(row[name][tiles:] == -100)


def test_the_objective_adds_labels_to_answers(model):
    stage = dataclasses.replace(STAGE, budgets=("hired:0.2",), rows=Rows(rows=1, tokens=240, tiles=5))
    layouts = with_labels(stage, make_layouts(stage, model.config, model.form, model.style, model.preprocessor))
    [layout] = layouts
    samples = grain.MapDataset.source([DRAWN["scenes:questions"]()[0]]).map(lambda record: layout(record).features())
    unit, per_unit = Axis.PICTURES, layout.visual.tokens_per_unit
    [batch] = pack(samples.to_iter_dataset(), layout.shape, per_unit, unit=unit, axes=layout.axes).batch(1)
    structure, weights = Structure.of(nnx.merge(*load_state(model.checkpoint, dtype=jnp.float32)))
    weights |= initial_heads(model.config.vlm.vision.hidden_size, 0)
    found = {}
    for name in ("answers", "labels", "answers+labels"):
        [objective] = make_objectives(structure, dataclasses.replace(stage, objective=name), [layout.visual.spec])
        (_, found[name]), grads = value_and_grad(objective)(weights, batch)
        moved = {group_of(name) for name, gradient in grads.items() if float(jnp.abs(gradient).sum()) > 0}
        groups = {"tower", "heads"} if "labels" in name else {"tower"}
        assert moved == groups | ({"projector", "decoder"} if "answers" in name else set())
    answers, labels, both = found.values()
    beside = stage.label_weight * labels.loss / labels.targets * answers.targets
    np.testing.assert_allclose(both.loss, answers.loss + beside, rtol=1e-5)
    assert both.targets == answers.targets > 0 and labels.targets == int(np.sum(batch["contents"] > 0))


def value_and_grad(objective):
    def loss(weights, batch):
        sums = objective(weights, {}, batch)
        return sums.loss, sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_a_budget_that_changes_tiles_is_refused(model):
    stage = dataclasses.replace(STAGE, budgets=("full", "downsample:0.5"))
    layouts = make_layouts(stage, model.config, model.form, model.style, model.preprocessor)
    with pytest.raises(ConfigError, match="downsample"):
        with_labels(stage, layouts)
    assert with_labels(dataclasses.replace(stage, objective="answers"), layouts) == layouts
