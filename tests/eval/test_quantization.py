"""The measurement behind docs/quantization.md: errors against PyTorch's, and the command from end to end."""

import json

import numpy as np
import pytest
import torch

import vila_jax
from eval import __main__ as command
from eval.logit_errors import compare, greedy_answers, read_answers
from tests.infer.checkpoints import photo, write
from tests.nano import export_narrow
from vila_jax.quantize import Quantization


def test_errors_are_those_of_pytorch():
    rng = np.random.default_rng(0)
    exact = [rng.standard_normal((n, 11)).astype(np.float32) for n in (1, 3)]
    found = [own + 0.1 * rng.standard_normal(own.shape).astype(np.float32) for own in exact]
    found[0][0, exact[0].argmax()] -= 9
    errors = compare(exact, found)
    ours, theirs = (torch.from_numpy(np.concatenate(all_)).double() for all_ in (exact, found))
    divergence = torch.nn.functional.kl_div(
        theirs.log_softmax(-1), ours.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert errors.divergence == pytest.approx(float(divergence), rel=1e-6)
    assert errors.largest == pytest.approx(float((ours - theirs).abs().max()))
    assert errors.mean == pytest.approx(float((ours - theirs).abs().mean()))
    same = (ours.argmax(-1) == theirs.argmax(-1)).numpy()
    assert errors.tokens == same.mean() < 1
    assert errors.answers == (same[0] + same[1:].all()) / 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    text = {"head_dim": 8, "max_position_embeddings": 200}
    return write(tmp_path_factory.mktemp("llava"), text_args=text).folder


ROWS = [("w10 <image> w11", [photo(23, 50)]), ("w20 w21 w22", []), ("<image> w30 w31 w32 w33", [photo(90, 41)])]


def test_answers_are_read_as_the_prompt_that_they_make_longer(folder):
    """Without quantisation, token by token from the cache is the same as at once without one."""
    model = vila_jax.from_pretrained(folder, dtype="float32")
    requests = [model.request(*row) for row in ROWS]
    answers = greedy_answers(model.engine, requests, 5)
    assert list(map(len, answers)) == [5, 5, 5]
    answers[1] = answers[1][:2]
    found = read_answers(model.engine, requests, answers, "float32")
    for (prompt, images), own, logits in zip(ROWS, answers, found, strict=True):
        whole = model.logits(" ".join([prompt, *(f"w{token}" for token in own)]), images)
        np.testing.assert_allclose(logits, whole[-len(own) - 1 : -1], atol=1e-4, rtol=1e-5)
        assert logits.argmax(-1).tolist() == own
    assert compare(found, found).largest == 0


def test_a_cache_of_eight_bits_shows_in_all_tokens_but_the_first(folder):
    model = vila_jax.from_pretrained(folder, dtype="float32", quantize=Quantization(kv="int8", force=True))
    requests = [model.request(*row) for row in ROWS]
    answers = greedy_answers(model.engine, requests, 5)
    exact, found = (read_answers(model.engine, requests, answers, dtype) for dtype in ("float32", "int8"))
    for own, eight in zip(exact, found, strict=True):
        off = np.abs(own - eight)
        assert off[0].max() == 0 and np.all(off[1:].max(-1) > 0)
        assert off[1:].mean() < 0.02 * np.abs(own).mean()


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.quantization.SPECS", ("int8", "int4,kv=int8"))
    monkeypatch.setattr("eval.quantization.enable_compile_cache", lambda: None)
    out, folder = tmp_path / "quantization", export_narrow(tmp_path / "narrow")
    sizes = ["--scenes", "6", "--answers", "3", "--preset", "tiny", "--new-tokens", "3"]
    assert command.main(["quantization", "--model", str(folder), *sizes, "--out", str(out)]) == 0
    rows = json.loads((out / "accuracy.json").read_text())["rows"]
    for own in (rows["nano"], rows["tiny"]):
        assert [row["spec"] for row in own] == [None, "int8", "int4,kv=int8"]
        assert own[0]["bytes"] > own[1]["bytes"] > own[2]["bytes"]
        assert own[0]["errors"]["largest"] == 0 < own[1]["errors"]["mean"] < own[2]["errors"]["mean"]
    page = (tmp_path / "quantization.md").read_text()
    assert "| `int4,kv=int8` |" in page and "| `llava-1.5-7b` | 32 |" in page and str(tmp_path) not in page
