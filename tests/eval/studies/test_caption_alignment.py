"""Alignment of photos and captions: the choice of patches, recall, and the study."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from eval.__main__ import main
from eval.metrics.retrieval import hits, ranks
from eval.studies.aligner import Aligner, Keep, Shape, contrastive_loss, photo_flops
from eval.studies.measure import xla_flops
from eval.studies.scene_captions import write_scenes

SHAPE = Shape(side=32, patch=8, width=16, heads=2, words=6)


@pytest.fixture(scope="module")
def model():
    return Aligner(SHAPE, 10, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def photos():
    return jnp.array(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))


WORDS = jnp.array([[2, 3, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0], [2, 5, 6, 7, 0, 0], [9, 8, 7, 6, 5, 4]])


def test_the_scorer_is_taught_although_the_choice_has_no_gradient(model, photos):
    graph, state = nnx.split(model)

    def loss(state, keep):
        model = nnx.merge(graph, state)
        return contrastive_loss(model.scores(model.photos(photos, keep), model.captions(WORDS)))

    for keep in (Keep(5), None):
        gradient = jax.grad(loss)(state, keep)
        assert np.abs(gradient["scorer"]["weight"][...]).max() > 1e-6
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_vector_depends_on_the_chosen_patches_alone():
    shape = Shape(side=32, patch=8, width=16, heads=2, before=0)  # before any block patches do not see each other
    model = Aligner(shape, 10, rngs=nnx.Rngs(0))
    photo = np.random.default_rng(1).integers(0, 255, (1, 32, 32, 3), np.uint8)
    vector = np.asarray(model.photos(jnp.array(photo), Keep(5)))
    changes = 0
    for i in range(16):
        other = photo.copy()
        y, x = 8 * (i // 4), 8 * (i % 4)
        other[0, y : y + 8, x : x + 8] += 1  # little enough that the same patches are chosen
        changes += not np.allclose(model.photos(jnp.array(other), Keep(5)), vector, atol=1e-6)
    assert changes == 5


def test_keeping_all_patches_is_the_unpruned_model(model, photos):
    np.testing.assert_array_equal(model.photos(photos, Keep(16)), model.photos(photos, None))


def test_random_patches_need_a_key(model, photos):
    rule = Keep(5, by="random")
    with pytest.raises(ValueError, match="needs a key"):
        model.photos(photos, rule)
    first, other = (model.photos(photos, rule, jax.random.key(i)) for i in range(2))
    assert not np.allclose(first, other)


def test_padding_of_a_caption_changes_nothing(model):
    short = np.asarray(model.captions(WORDS[:1]))
    alone = nnx.clone(model)
    alone.place = nnx.Param(model.place[...][:2])
    np.testing.assert_allclose(alone.captions(WORDS[:1, :2]), short, atol=1e-6)


def test_the_loss_is_that_of_two_classifications():
    scores = np.random.default_rng(0).normal(size=(3, 3))
    probabilities = [np.exp(s) / np.exp(s).sum(axis=1, keepdims=True) for s in (scores, scores.T)]
    expected = np.mean([-np.log(np.diag(p)).mean() for p in probabilities])
    np.testing.assert_allclose(contrastive_loss(jnp.array(scores)), expected, rtol=1e-5)


def test_ranks_by_hand():
    owners = np.array([0, 0, 1, 2])
    scores = np.array([[0.9, 0.1, 0.5, 0.0], [0.8, 0.3, 0.7, 0.2], [0.7, 0.2, 0.7, 0.1]])
    found = ranks(scores, owners)
    assert found.photos.tolist() == [0, 2, 1, 1]  # the third caption's photo ties with another, which counts as lost
    assert found.captions.tolist() == [0, 1, 3]
    recall = {name: own.tolist() for name, own in hits(found, owners).items()}
    assert recall["caption to photo, recall@1"] == [0.5, 0, 0]
    assert recall["photo to caption, recall@1"] == [1, 0, 0]
    assert recall["photo to caption, recall@5"] == recall["caption to photo, recall@10"] == [1, 1, 1]


def test_equal_scores_find_nothing():
    found = ranks(np.ones((20, 20)), np.arange(20))
    assert all((own == 0).all() for own in hits(found, np.arange(20)).values())


def test_flops_are_those_of_the_compiled_program():
    shape = Shape(side=64, patch=8, width=128, heads=1)
    graph, state = nnx.split(Aligner(shape, 10, rngs=nnx.Rngs(0)))
    photo = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    for keep in (None, Keep(16)):
        counted = xla_flops(lambda state, photo, keep=keep: nnx.merge(graph, state).photos(photo, keep), state, photo)
        assert 1 < counted / photo_flops(shape, keep) < 1.1  # norms, softmax and activations are counted as well


@pytest.mark.parametrize("data", ["scenes", "folder"])
def test_the_study_runs_and_writes_its_files(tmp_path, data):
    arguments = ["study", "caption_alignment", "--quick", "--seeds", "1", "--out", str(tmp_path / "out")]
    if data == "folder":
        write_scenes(tmp_path / "flickr", 12, "csv")
        (tmp_path / "flickr" / "Images" / "scene_00003.jpg").unlink()
        arguments += ["--flickr8k", str(tmp_path / "flickr")]
    assert main(arguments) == 0
    facts = json.loads((tmp_path / "out" / "caption_alignment.json").read_text())
    expected = ("Flickr8k", 9, 2, 1) if data == "folder" else ("drawn scenes", 24, 8, 0)
    settings = facts["settings"]
    found = settings["data"], settings["train"], settings["test"], facts["left_out"]["missing_photos"]
    assert found == expected
    rows = {row["form"]: row for row in facts["rows"]}
    assert list(rows) == ["unpruned", "learned", "random"]
    assert rows["learned"]["photo_flops"] < rows["unpruned"]["photo_flops"]
    assert set(rows["learned"]["lossyness"]) == {
        f"{way}, recall@{k}" for way in ("photo to caption", "caption to photo") for k in (1, 5, 10)
    }
    page = (tmp_path / "out" / "caption_alignment.md").read_text()
    assert str(tmp_path) not in page and ("1 missing photos" in page) == (data == "folder")
    Image.open(tmp_path / "out" / "caption_alignment.png").load()


def test_a_folder_without_the_data_set_is_an_error_without_a_traceback(tmp_path, capsys):
    arguments = ["study", "caption_alignment", "--quick", "--out", str(tmp_path), "--flickr8k", str(tmp_path)]
    assert main(arguments) != 0
    assert "error:" in capsys.readouterr().err
