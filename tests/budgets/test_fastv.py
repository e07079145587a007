"""FastV against its authors' code: which tokens are left, and what becomes of them."""

import numpy as np
import pytest

from tests.budgets import tiny_llama
from vila_jax.budgets import Step
from vila_jax.errors import BudgetError

CASES = [(2, 72), (2, 36), (3, 14), (1, 72)]


@pytest.fixture(scope="module")
def recorded(golden) -> tiny_llama.Golden:
    return tiny_llama.load(golden / "budgets" / "fastv_tiny_llama.npz")


@pytest.mark.parametrize(("layer", "keep"), CASES)
def test_as_the_reference_drops(recorded, layer, keep):
    """Original positions name the tokens that are left. The other row of the batch is shorter."""
    row = recorded.embedded, recorded.visual
    other = recorded.embedded[::-1][:100], recorded.visual[::-1][:100]
    left, cache, lost = tiny_llama.run(recorded, f"fastv:{keep},layer={layer}", [row, other])
    name = f"K{layer}_keep{keep}"
    index = recorded.arrays[f"{name}_keep_index"]
    assert left.lengths[0] == len(index) and left.lengths[1] == 100 - 89 + keep
    assert left.positions[0, : len(index)].tolist() == index.tolist()
    hidden = recorded.arrays[f"{name}_drop_last_hidden"][0]
    np.testing.assert_allclose(left.x[0, : len(index)], hidden, rtol=0, atol=1e-4)
    assert lost.tolist() == [[144 - keep, 89 - keep]]
    lengths = [layer_cache[0].shape[-2] for layer_cache in cache]
    assert lengths == [256] * layer + [128 if keep > 40 else 64] * (6 - layer)


def test_a_row_does_not_depend_on_its_batch(recorded):
    row = recorded.embedded[:150], recorded.visual[:150]
    other = recorded.embedded[40:], recorded.visual[40:]
    none = recorded.embedded[:30], np.zeros(30, bool)
    together, *_ = tiny_llama.run(recorded, "fastv:0.3", [other, row, none])
    for i, own in enumerate((other, row, none)):
        alone, *_ = tiny_llama.run(recorded, "fastv:0.3", [own])
        length = int(alone.lengths[0])
        assert length == int(together.lengths[i])
        assert alone.positions[0, :length].tolist() == together.positions[i, :length].tolist()
        np.testing.assert_allclose(alone.x[0, :length], together.x[i, :length], rtol=0, atol=1e-5)


def test_renumbered_positions(recorded):
    row = recorded.embedded, recorded.visual
    left, *_ = tiny_llama.run(recorded, "fastv:36,layer=2,positions=renumbered", [row])
    length = int(left.lengths[0])
    assert left.positions[0, :length].tolist() == list(range(length))
    original = recorded.arrays["K2_keep36_drop_last_hidden"][0]
    assert np.abs(left.x[0, :length] - original).max() > 1e-2


@pytest.mark.parametrize("scores", [np.nan, 0.0, np.inf])
def test_exact_count_whatever_the_scores(recorded, scores):
    """Embeddings that make every score NaN or equal."""
    embedded = np.full_like(recorded.embedded, scores)
    left, *_ = tiny_llama.run(recorded, "fastv:0.25", [(embedded, recorded.visual)])
    length = int(left.lengths[0])
    assert int(left.visual[0].sum()) == 36 and length == 17 + 36
    assert len(set(left.positions[0, :length].tolist())) == length
    visual = left.positions[0][left.visual[0]].tolist()
    assert visual == list(range(6, 42))  # the lowest index wins a tie


@pytest.mark.parametrize(("layer", "depth"), [(0, 6), (6, 6), (-1, 6), (99, 32)])
def test_layer_that_does_not_exist(layer, depth):
    with pytest.raises(BudgetError, match=f"layer {layer} .*{depth} layers.*1 to {depth - 1}"):
        Step.parse(f"fastv:0.5,layer={layer}").decoder_method.check(depth, 0.5)
