"""SparseVLM against its authors' code: scores, masks and clusters; and what is done with them here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.budgets import tiny_llama
from vila_jax.budgets import Step, decoder_counts
from vila_jax.budgets.select import keep_top
from vila_jax.budgets.sparsevlm import SparseVLM, cluster_means
from vila_jax.errors import BudgetError
from vila_jax.infer.shorten import Raters, Tokens, score
from vila_jax.nn.decoder import Decoder

REFERENCE = {  # tokens kept behind the layers 2, 6 and 15 of 576, clusters not counted
    "sparsevlm:113,ratio1=0.537,ratio2=0.355": (300, 200, 110),
    "sparsevlm:39,ratio1=0.542,ratio2=0.204": (303, 110, 36),
    "sparsevlm:18,ratio1=0.143,ratio2=0.056": (66, 30, 17),
}


@pytest.fixture(scope="module")
def recorded(golden) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "budgets" / "sparsevlm.npz"))


@pytest.mark.parametrize(("setting", "kept"), [("192", 300), ("128", 303), ("64", 66)])
def test_scores_and_masks_are_those_of_the_reference(recorded, setting, kept):
    """Its attention of 9 raters to 576 visual tokens, here behind four places of which no rater is one."""
    attention = jnp.asarray(recorded["text_to_vision_attn"].mean(axis=1))
    rows = jnp.pad(attention, ((0, 0), (0, 4), (0, 0)), constant_values=7.0)

    class Recorded(Decoder):
        def __init__(self):
            pass

        def attention_weights(self, *args):
            return rows

    zeros = jnp.zeros((1, 576), jnp.int32)
    tokens = Tokens(jnp.zeros((1, 576, 2)), zeros, zeros == 0, zeros, jnp.full(1, 576, jnp.int32))
    raters = Raters(jnp.arange(13), jnp.asarray([[1.0] * 9 + [0.0] * 4]))
    scores = score(Recorded(), 2, tokens, raters)
    np.testing.assert_allclose(scores, recorded["relation_vis_text"], rtol=1e-6, atol=1e-7)
    mask = keep_top(scores, tokens.visual, jnp.asarray([kept]))
    expected = np.unpackbits(recorded[f"retain{setting}_layer2_mask"], axis=1)[:, :576].astype(bool)
    np.testing.assert_array_equal(mask, expected)


def test_clusters_are_those_of_the_reference(recorded):
    """Rows of a batch have pools and numbers of clusters of their own; what is padding does not count."""
    own, other = recorded["cluster_in"][0], np.random.default_rng(0).standard_normal((60, 16), np.float32)
    x = np.full((2, 64, 16), 1e3, np.float32)
    x[0, :60], x[1, :41] = own, other[:41]
    valid = np.arange(64)[None] < np.array([[60], [41]])
    merged = jax.jit(cluster_means)(x, valid, np.array([7, 5], np.int32))
    np.testing.assert_allclose(merged[0, :7], recorded["cluster_out_k7"][0], rtol=0, atol=1e-4)
    alone = cluster_means(jnp.asarray(other[None, :41]), jnp.ones((1, 41), bool), jnp.asarray([5], jnp.int32))
    np.testing.assert_allclose(merged[1, :5], alone[0, :5], rtol=0, atol=1e-5)


def test_equal_tokens_make_distinct_clusters():
    x = jnp.ones((1, 20, 4))
    merged = cluster_means(x, jnp.ones((1, 20), bool), jnp.asarray([3], jnp.int32))
    np.testing.assert_allclose(merged[0, :3], np.ones((3, 4)))


def test_raters_are_the_words_that_the_picture_speaks_of():
    rng = np.random.default_rng(3)
    x, question = rng.standard_normal((2, 30, 8), np.float32), rng.standard_normal((2, 12, 8), np.float32)
    visual = rng.random((2, 30)) < 0.6
    valid = np.arange(12)[None] < np.array([[9], [12]])
    ours = np.asarray(SparseVLM().raters(*map(jnp.asarray, (x, visual, question, valid))))
    for row, words in enumerate((9, 12)):
        products = x[row][visual[row]] @ question[row, :words].T
        relevance = (np.exp(products) / np.exp(products).sum(axis=1, keepdims=True)).mean(axis=0)
        expected = relevance > relevance.mean()
        assert 0 < expected.sum() < words
        assert ours[row].tolist() == [*expected.tolist(), *[False] * (12 - words)]


def test_a_single_word_rates():
    one = jnp.zeros((1, 3, 4)), jnp.ones((1, 3), bool), jnp.zeros((1, 2, 4)), jnp.asarray([[True, False]])
    assert SparseVLM().raters(*one).tolist() == [[True, False]]


@pytest.mark.parametrize("spec", REFERENCE)
def test_as_many_are_kept_as_by_the_reference(spec):
    step = Step.parse(spec)
    counts = decoder_counts(step, 576, "the prompt")
    merging = [step.decoder_method.merging(*pair) for pair in zip((576, *counts), counts, strict=False)]
    kept = REFERENCE[spec]
    assert tuple(n - merged for n, (_, merged) in zip(counts, merging, strict=True)) == kept
    for before, own, (pool, clusters) in zip((576, *counts), kept, merging, strict=False):
        assert pool == int((before - own) * 0.3) + 1 and clusters == pool // 10 + 1
    assert step.decoder_method.cuts(32) == (3, 7, 16)


def test_merged_tokens_are_part_of_those_left():
    rule = SparseVLM()
    for before in range(1, 200):
        for after in range(1, before + 1):
            pool, merged = rule.merging(before, after)
            assert 0 <= merged <= pool <= before - (after - merged)
            assert merged < after
    assert rule.merging(576, 5) == rule.merging(9, 9) == (0, 0)
    assert SparseVLM(merge_tokens=False).merging(576, 300) == (0, 0)


def test_a_row_does_not_depend_on_its_batch(golden):
    model = tiny_llama.load(golden / "budgets" / "fastv_tiny_llama.npz")
    rows = [
        (model.embedded[40:], model.visual[40:]),
        (model.embedded[:150], model.visual[:150]),  # ends with its picture
        (model.embedded[:30], np.zeros(30, bool)),
    ]
    spec = "sparsevlm:0.2,layer1=0.2"
    together, *_ = tiny_llama.run(model, spec, rows)
    for i, own in enumerate(rows):
        alone, *_ = tiny_llama.run(model, spec, [own])
        length, visual = int(alone.lengths[0]), int(own[1].sum())
        assert length == int(together.lengths[i]) == len(own[0]) - visual + int(visual * 0.2)
        assert alone.visual[0, :length].tolist() == together.visual[i, :length].tolist()
        np.testing.assert_allclose(alone.x[0, :length], together.x[i, :length], rtol=0, atol=1e-4)


def test_merged_tokens_change_what_is_read(golden):
    model = tiny_llama.load(golden / "budgets" / "fastv_tiny_llama.npz")
    row = model.embedded, model.visual
    merged, *_ = tiny_llama.run(model, "sparsevlm:0.2,layer1=0.2", [row])
    plain, *_ = tiny_llama.run(model, "sparsevlm:0.2,layer1=0.2,merge_tokens=false", [row])
    length = int(merged.lengths[0])
    assert length == int(plain.lengths[0])
    assert merged.visual.tolist() == plain.visual.tolist()
    assert np.abs(merged.x[0, :length] - plain.x[0, :length]).max() > 1e-3


def test_merged_tokens_have_no_position_of_their_own():
    with pytest.raises(BudgetError, match="positions of budget method 'sparsevlm'"):
        Step.parse("sparsevlm:0.2,positions=original")
