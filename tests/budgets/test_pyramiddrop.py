"""PyramidDrop against its authors' code, and its schedule."""

import numpy as np
import pytest

from tests.budgets import tiny_llama
from vila_jax.budgets import Step, decoder_counts
from vila_jax.errors import BudgetError


@pytest.fixture(scope="module")
def recorded(golden) -> tiny_llama.Golden:
    return tiny_llama.load(golden / "budgets" / "pyramiddrop_tiny_llama.npz")


def test_as_the_reference_drops(recorded):
    """With the paper's ratios; positions are counted anew, so that the tokens left are known by their hidden states."""
    row = recorded.embedded, recorded.visual
    step = Step.parse("pyramiddrop:0.125")
    assert step.decoder_method.cuts(6) == tuple(recorded.arrays["layer_list"])
    assert step.decoder_method.ratios(0.125) == pytest.approx(recorded.arrays["ratio_list"][1:])
    left, cache, lost = tiny_llama.run(recorded, str(step), [row])
    hidden = recorded.arrays["last_hidden"][0]
    length = int(left.lengths[0])
    assert length == len(hidden)
    assert left.positions[0, :length].tolist() == list(range(length))
    np.testing.assert_allclose(left.x[0, :length], hidden, rtol=0, atol=1e-4)
    assert lost[:, 0].tolist() == [72, 108, 126]
    assert [layer[0].shape[-2] for layer in cache] == [256, 256, 128, 64, 64, 64]


def test_original_positions_name_the_tokens_that_the_reference_keeps_first(recorded):
    row = recorded.embedded, recorded.visual
    options = "ratio1=0.5,ratio2=0.5,positions=original"
    left, *_ = tiny_llama.run(recorded, f"pyramiddrop:0.5,{options}", [row])
    kept = recorded.arrays["kept_in_previous_seq_layer2"]
    assert left.positions[0, : int(left.lengths[0])].tolist() == kept.tolist()


def test_a_row_does_not_depend_on_its_batch(recorded):
    row = recorded.embedded[:150], recorded.visual[:150]
    other = recorded.embedded[40:], recorded.visual[40:]
    none = recorded.embedded[:30], np.zeros(30, bool)
    together, *_ = tiny_llama.run(recorded, "pyramiddrop:0.1", [other, row, none])
    for i, own in enumerate((other, row, none)):
        alone, *_ = tiny_llama.run(recorded, "pyramiddrop:0.1", [own])
        length = int(alone.lengths[0])
        assert length == int(together.lengths[i])
        np.testing.assert_allclose(alone.x[0, :length], together.x[i, :length], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "visual", "counts"),
    [
        ("pyramiddrop:0.125", 576, (288, 144, 72)),
        ("pyramiddrop:0.064", 1000, (400, 160, 64)),
        ("pyramiddrop:0.1,ratio1=0.9,ratio2=0.3", 100, (90, 30, 10)),
        ("pyramiddrop:0.1,ratio1=0.4", 100, (40, 20, 10)),
        ("pyramiddrop:0.1,ratio2=0.25", 100, (50, 25, 10)),
        ("pyramiddrop:72", 576, (288, 144, 72)),
        ("pyramiddrop:7", 7, (7, 7, 7)),
        ("pyramiddrop:0.125", 1, (1, 1, 1)),
        ("pyramiddrop:0.125", 0, (0, 0, 0)),
    ],
)
def test_counts(spec, visual, counts):
    assert decoder_counts(Step.parse(spec), visual, "the prompt") == counts


@pytest.mark.parametrize(
    ("spec", "depth", "message"),
    [
        ("pyramiddrop:0.5,ratio1=0.3", 32, "more tokens than the one before"),
        ("pyramiddrop:0.1", 3, "before the layers 1, 2, 3 .*3 layers.*fastv"),
        ("pyramiddrop:0.1,layer3=0.99", 32, "layers 8, 16, 32 .*32 layers, of which 1 to 31"),
    ],
)
def test_what_does_not_go_together(spec, depth, message):
    step = Step.parse(spec)
    with pytest.raises(BudgetError, match=message):
        step.decoder_method.check(depth, step.keep)


@pytest.mark.parametrize("options", ["layer1=0.6", "layer3=1.0", "layer1=-0.1", "ratio1=1.1", "ratio2=-0.5"])
def test_options_out_of_range(options):
    with pytest.raises(BudgetError, match="'pyramiddrop'"):
        Step.parse(f"pyramiddrop:0.1,{options}")


def test_more_tokens_than_there_are():
    with pytest.raises(BudgetError, match=r"asks for 8 visual tokens, but prompt 3 has only 7"):
        decoder_counts(Step.parse("pyramiddrop:8"), 7, "prompt 3")
