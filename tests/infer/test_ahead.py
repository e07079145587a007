"""Requests are compiled while weights are still read; what goes wrong in reading is said to whoever waits."""

import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

import vila_jax
from tests.compilations import counter
from tests.infer.checkpoints import photo
from vila_jax.dist import make_mesh
from vila_jax.errors import CheckpointError
from vila_jax.hf.load import WeightPlan

WIDE, TALL = photo(33, 71), photo(90, 41)
PROMPT = "w5 <image> w6"
OPTIONS = {"max_new_tokens": 12, "ignore_eos": True}


@pytest.fixture
def held_back(monkeypatch) -> threading.Event:
    """Weights are read only once this is set."""
    gate, read = threading.Event(), WeightPlan.read

    def waiting(plan, on_tensor=None):
        assert gate.wait(120)
        return read(plan, on_tensor)

    monkeypatch.setattr(WeightPlan, "read", waiting)
    yield gate
    gate.set()


def finished(answers):
    """The result of one prompt, for which nothing had to be compiled any more."""
    with counter() as count:
        for _ in answers:
            pass
    assert count() == 0
    return answers.results()[0]


@pytest.mark.parametrize("budget", [None, "hired:0.3", "fastv:0.5,layer=1"])
@pytest.mark.parametrize("axes", [None, {"data": 4, "tensor": 2}], ids=str)
def test_all_is_compiled_before_any_weight_is_there(model, written, held_back, budget, axes):
    options = OPTIONS | {"budget": budget}
    mesh = None if axes is None else make_mesh(axes)
    early = vila_jax.from_pretrained(written.folder, dtype="float32", mesh=mesh, wait=False)
    answers = early.answers(PROMPT, [WIDE], **options)
    answers.compile()
    assert not held_back.is_set()
    held_back.set()
    early.wait()
    result = finished(answers)
    assert result.timings.compile > 0
    expected = model.generate(PROMPT, [WIDE], **options)
    assert result.token_ids == expected.token_ids and result.usage == expected.usage


@pytest.mark.parametrize("image_cache", [0, 2**24])
@pytest.mark.parametrize("axes", [None, {"data": 4, "tensor": 2}], ids=str)
def test_threads_compile_what_the_iteration_waits_for(model, written, axes, image_cache):
    compiled: list[str] = []
    mesh, options = None if axes is None else make_mesh(axes), {"wait": False, "on_compile": compiled.append}
    early = vila_jax.from_pretrained(written.folder, dtype="float32", mesh=mesh, image_cache=image_cache, **options)
    answers = early.answers(PROMPT, [WIDE], **OPTIONS)
    answers.compile(wait=False)
    for _ in answers:
        pass
    [result], expected = answers.results(), model.generate(PROMPT, [WIDE], **OPTIONS)
    assert result.token_ids == expected.token_ids and result.usage == expected.usage
    apart = ["tiles apart"] * (image_cache > 0)
    assert compiled == ["vision tower", *apart, "visual tokens", "prefill", "decode"]


def test_what_threads_cannot_compile_is_said_by_the_iteration(written, monkeypatch):
    def broken(*args, **options):
        raise ValueError("no such program")

    early = vila_jax.from_pretrained(written.folder, dtype="float32")
    monkeypatch.setattr("vila_jax.infer.phases.decode_chunk", broken)
    answers = early.answers(PROMPT, [WIDE], **OPTIONS)
    answers.compile(wait=False)
    with pytest.raises(ValueError, match="no such program"):
        for _ in answers:
            pass
    with pytest.raises(ValueError, match="no such program"):
        early.answers(PROMPT, [WIDE], **OPTIONS).compile()
    monkeypatch.undo()
    assert len(early.generate(PROMPT, [WIDE], **OPTIONS).token_ids) == OPTIONS["max_new_tokens"]


def test_the_plan_tells_the_shapes_of_what_is_read(written):
    for options in ({}, {"dtype": "bfloat16"}, {"quantize": "int8,force"}):
        programs = vila_jax.from_pretrained(written.folder, **options).engine.phases.programs
        planned, there = (jax.tree.leaves(tree) for tree in (programs.shapes, programs.state))
        assert [(leaf.shape, leaf.dtype) for leaf in planned] == [(leaf.shape, leaf.dtype) for leaf in there]


def test_a_rehearsal_keeps_no_picture_and_counts_none(model, written):
    cached = vila_jax.from_pretrained(written.folder, dtype="float32", image_cache=2**24)
    answers = cached.answers(PROMPT, [TALL], **OPTIONS)
    answers.compile()
    images = cached.engine.phases.images
    assert (len(images), images.lookups.hits, images.lookups.misses) == (0, 0, 0)
    result = finished(answers)
    assert len(images) == 1
    assert result.token_ids == model.generate(PROMPT, [TALL], **OPTIONS).token_ids


def test_a_single_token_needs_no_decoding(written):
    compiled = []
    early = vila_jax.from_pretrained(written.folder, dtype="float32", on_compile=compiled.append)
    early.answers(PROMPT, [WIDE], max_new_tokens=1).compile()
    assert compiled == ["vision tower", "visual tokens", "prefill"]


def test_a_conversation_is_compiled_behind_what_was_read(written):
    chat = vila_jax.from_pretrained(written.folder, dtype="float32")
    prefixes = vila_jax.PrefixCache(2**26)
    first = chat.generate("w5 w6 " * 40, prefixes=prefixes, **OPTIONS)
    further = chat.answers("w5 w6 " * 40 + "w7", prefixes=prefixes, **OPTIONS)
    further.compile()
    result = finished(further)
    assert first.usage.cached_tokens == 0 < result.usage.cached_tokens
    assert result.token_ids == chat.generate("w5 w6 " * 40 + "w7", **OPTIONS).token_ids


def test_what_goes_wrong_in_reading_is_raised_by_waiting(written, monkeypatch):
    def broken(plan, on_tensor=None):
        raise CheckpointError("the disk is gone", where="a.safetensors", fix="Look for it.")

    monkeypatch.setattr(WeightPlan, "read", broken)
    early = vila_jax.from_pretrained(written.folder, dtype="float32", wait=False)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="the disk is gone"):
            early.wait()
    with pytest.raises(CheckpointError, match="the disk is gone"):
        early.generate(PROMPT, [WIDE], max_new_tokens=1)
    with pytest.raises(CheckpointError, match="the disk is gone"):
        vila_jax.from_pretrained(written.folder, dtype="float32")


_LEAVES_EARLY = """
import sys, time
import vila_jax

def slowly(name, done, total):
    print(name, flush=True)
    time.sleep(0.2)

model = vila_jax.from_pretrained(sys.argv[1], dtype="float32", on_tensor=slowly, wait=False)
raise SystemExit(7)
"""


def test_reading_ends_with_the_program(written):
    command = [sys.executable, "-c", _LEAVES_EARLY, str(written.folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (ended.returncode, ended.stderr) == (7, "")
    tensors = len(jax.tree.leaves(vila_jax.from_pretrained(written.folder).engine.phases.programs.shapes))
    assert len(ended.stdout.splitlines()) < tensors / 2


def test_waiting_is_the_default(written, held_back):
    opened = []
    thread = threading.Thread(target=lambda: opened.append(vila_jax.from_pretrained(written.folder, dtype="float32")))
    thread.start()
    thread.join(1.0)
    assert not opened
    held_back.set()
    thread.join(120)
    weights = jax.tree.leaves(opened[0].engine.phases.programs.state)
    assert weights and all(np.all(np.isfinite(weight)) for weight in weights)
