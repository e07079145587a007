"""The network without channels against itself with those channels at zero, its costs, and the study in short."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from eval.__main__ import main
from eval.studies import digit_scans
from eval.studies.measure import xla_flops
from eval.studies.small_cnn import Shape, SmallCNN, flops, norms, without_weakest
from vila_jax.errors import VilaError

SHAPE = Shape(side=8, stride=1, widths=(6, 10, 8))
SMALL = Shape(side=8, stride=1, widths=(3, 4, 5))


@pytest.fixture(scope="module")
def model():
    """With random biases as well, which start as zeros."""
    model = SmallCNN(SHAPE, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    rng = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), state))


@pytest.fixture(scope="module")
def pictures():
    return jnp.asarray(np.random.default_rng(1).random((5, 8, 8, 1), np.float32))


def test_without_channels_is_with_those_channels_at_zero(model, pictures):
    rng = np.random.default_rng(2)
    scores = [rng.random(width) for width in SHAPE.widths]
    small = without_weakest(model, scores, SMALL)
    masked = nnx.clone(model)
    for convolution, own, width in zip(masked.convolutions, scores, SMALL.widths, strict=True):
        stays = jnp.asarray(own >= np.sort(own)[-width], jnp.float32)
        convolution.kernel[...] = convolution.kernel[...] * stays[None, None, None]
        convolution.bias[...] = convolution.bias[...] * stays
    np.testing.assert_allclose(small(pictures), masked(pictures), rtol=1e-4, atol=1e-4)
    assert not np.allclose(small(pictures), model(pictures), atol=0.1)


def test_all_channels_are_the_network_bit_by_bit(model, pictures):
    same = without_weakest(model, [np.ones(width) for width in SHAPE.widths], SHAPE)
    np.testing.assert_array_equal(same(pictures), model(pictures))


def test_a_channel_that_nothing_makes_or_reads_is_the_weakest(model, pictures):
    """Of each convolution one channel, the classifier's inputs included, is set to zero in all of its weights."""
    dead = nnx.clone(model)
    places = (4, 7, 2)
    for i, place in enumerate(places):
        own = dead.convolutions[i]
        own.kernel[...] = own.kernel[...].at[..., place].set(0)
        own.bias[...] = own.bias[...].at[place].set(-1)
        if i < 2:
            reader = dead.convolutions[i + 1]
            reader.kernel[...] = reader.kernel[...].at[:, :, place].set(0)
    classifier = dead.classifier.kernel[...].reshape(SHAPE.cells, 8, 10).at[:, 2].set(0)
    dead.classifier.kernel[...] = classifier.reshape(-1, 10)
    assert [np.flatnonzero(own == 0).tolist() for own in norms(dead)] == [[place] for place in places]
    means = dead.with_means(pictures)[1]
    assert all(own[place] == own.min() == 0 for own, place in zip(means, places, strict=True))


@pytest.mark.parametrize("shape", [Shape(8, 1, (32, 64, 64)), Shape(28, 2, (16, 32, 32))])
def test_operations_are_those_that_are_compiled(shape):
    """XLA leaves the padding out, and counts ReLU, pooling and biases."""
    graph, state = nnx.split(SmallCNN(shape, rngs=nnx.Rngs(0)))
    picture = jnp.zeros((1, shape.side, shape.side, 1))
    counted = xla_flops(lambda state, picture: nnx.merge(graph, state)(picture), state, picture)
    whole, border = flops(shape), 1 - (1 - 2 / (3 * shape.sides[2])) ** 2
    assert (1 - border) * whole < counted < 1.02 * whole
    assert flops(shape.kept(0.5)) < 0.28 * whole  # what the study is to show: at least 72 % less


def test_the_study_runs(tmp_path):
    arguments = ["study", "channel_pruning", "--quick", "--seeds", "2", "--data", "digits", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"channel_pruning.{end}" for end in ("json", "md", "png")}
    facts = json.loads((tmp_path / "channel_pruning.json").read_text())
    rows = {(row["form"], row["keep"]): row for row in facts["rows"]}
    forms = ("magnitude", "activation", "random", "scratch", "raw")
    assert rows.keys() == {("baseline", 1), *((form, 0.5) for form in forms)}
    small, base = facts["costs"]["0.5"], facts["costs"]["1"]
    assert base["flops"] == flops(Shape(8, 1, (8, 8, 8))) and small["flops"] == flops(Shape(8, 1, (4, 4, 4)))
    assert small["weight_bytes"] == 4 * (9 * (4 + 16 + 16) + 12 + 16 * 10 + 10)
    assert small["peak_bytes"] < base["peak_bytes"]
    page = (tmp_path / "channel_pruning.md").read_text()
    assert "| random channels (control) | 50 % |" in page and "](channel_pruning.png)" in page
    assert "--data digits" in page and str(tmp_path) not in page
    Image.open(tmp_path / "channel_pruning.png").load()


def test_digits_are_split_once():
    scans = digit_scans.load("digits")
    assert (scans.train.shape, scans.test.shape) == ((1000, 8, 8, 1), (797, 8, 8, 1))
    assert scans.train.min() == 0 and scans.train.max() == 1
    assert set(scans.train_digits) == set(scans.test_digits) == set(range(10))
    pictures = {picture.tobytes() for picture in (*scans.train, *scans.test)}
    assert len(pictures) == 1797  # none is in both


def test_mnist_as_tensorflow_datasets_gives_it(monkeypatch):
    rng = np.random.default_rng(0)
    held = {
        split: [{"image": rng.integers(0, 256, (28, 28, 1), np.uint8), "label": int(i % 10)} for i in range(count)]
        for split, count in (("train", 7), ("test", 3))
    }
    source = types.ModuleType("tensorflow_datasets")
    source.data_source = lambda name, split: held[split] if name == "mnist" else None
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", source)
    scans = digit_scans.load("auto")
    assert (scans.name, scans.train.shape, scans.test.shape) == ("mnist", (7, 28, 28, 1), (3, 28, 28, 1))
    np.testing.assert_array_equal(np.rint(255 * scans.test[2]), held["test"][2]["image"])
    assert scans.train_digits.tolist() == list(range(7))


@pytest.mark.parametrize("error", [ImportError("no such module"), ConnectionError("no network")])
def test_without_mnist(monkeypatch, capsys, error):
    def fail():
        raise error

    monkeypatch.setattr(digit_scans, "mnist", fail)
    assert digit_scans.load("auto").name == "digits"
    assert str(error) in capsys.readouterr().err
    with pytest.raises(VilaError, match=f"MNIST cannot be read \\({error}\\).*pip install tensorflow-datasets"):
        digit_scans.load("mnist")
