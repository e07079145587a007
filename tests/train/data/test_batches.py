"""Batches of several budgets: who sees which record, which budget comes when, and where a run goes on."""

import collections
import dataclasses
import json
import threading

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vila_jax
from tests.train.data.forms import png
from train.data.mixture import Rounds
from train.data.records import Caption, Conversation
from train.data.samples import make_layouts
from train.data.stream import MIN_SEEN, drawn_budget, estimate_steps, open_batches
from train.recipe import Data, Rows, Stage
from vila_jax.errors import BudgetError, CheckpointError, ConfigError, DataError

BUDGETS = ("full", "random:0.5", "uniform:0.25")
STAGE = Stage("x", {"projector": 1e-3}, Rows(2, 96, 4, bins=3), Data("set", threads=2, prefetch=3), budgets=BUDGETS)


@pytest.fixture(scope="module")
def layouts(golden):
    model = vila_jax.from_pretrained(golden / "vila" / "checkpoints" / "vila15_llama_siglip", dtype="float32")
    return make_layouts(STAGE, model.config, model.form, model.style, model.preprocessor)


def records(count, bad_every=0):
    """Captions of one picture each, some of them empty, which is bad."""
    pictures = [png(Image.new("RGB", (20, 20), (i, 0, 0))) for i in range(4)]
    texts = ["" if bad_every and i % bad_every == 0 else f"word {i}" for i in range(count)]
    return {"set": grain.MapDataset.source([Caption(f"{i}", t, (pictures[i % 4],)) for i, t in enumerate(texts)])}


def taken(batches, count):
    return [next(batches) for _ in range(count)]


def same(one, other):
    assert [budget for budget, _ in one] == [budget for budget, _ in other]
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3))
def test_every_round_has_every_record_once_whatever_the_shares(size, other, shares, seed):
    sets = {"a": grain.MapDataset.range(size), "b": grain.MapDataset.range(100, 100 + other)}
    whole = size + 2 * other
    parts = [Rounds("a+b*2", sets, seed=seed, host=share, hosts=shares) for share in range(shares)]
    assert parts[0].round == whole
    order = [int(parts[place % shares][place // shares]) for place in range(3 * whole)]
    expected = collections.Counter(range(size)) + collections.Counter([*range(100, 100 + other)] * 2)
    for turn in range(3):
        assert collections.Counter(order[turn * whole : (turn + 1) * whole]) == expected


def test_rounds_differ_and_a_small_share_goes_on_where_it_ended():
    sets = {"a": grain.MapDataset.range(60), "b": grain.MapDataset.range(100, 140)}
    rounds = Rounds("a=0.2+b=0.8", sets, seed=3)
    assert rounds.round == 50
    turns = [[int(rounds[turn * 50 + place]) for place in range(50)] for turn in range(6)]
    assert len({tuple(turn) for turn in turns}) == 6
    assert sorted(x for turn in turns for x in turn if x < 100) == list(range(60))  # ten of them a round
    assert all(sorted(x for x in turn if x >= 100) == list(range(100, 140)) for turn in turns)


def test_budgets_are_drawn_alike_on_all_hosts(layouts):
    streams = [open_batches(STAGE, layouts, records(40), host=host, hosts=2) for host in range(2)]
    made = [taken(batches, 12) for batches in streams]
    drawn = [drawn_budget(STAGE.seed, step, 3) for step in range(12)]
    assert [[budget for budget, _ in own] for own in made] == [drawn, drawn] and set(drawn) == {0, 1, 2}
    for (budget, one), (_, other) in zip(*made, strict=True):
        assert one["token_ids"].shape == (1, 96) and not np.array_equal(one["token_ids"], other["token_ids"])
        assert ("plan.total" in one) == (budget > 0)
    for batches in streams:
        batches.close()


def positions(batches, count):
    """So many batches, each with what is known behind it: the position, and the counts."""
    return [(next(batches), batches.get_state(), batches.seen, batches.bad) for _ in range(count)]


def bad_records():
    return records(50, bad_every=10)


@pytest.fixture(scope="module")
def uninterrupted(layouts):
    """Made without a thread."""
    stage = dataclasses.replace(STAGE, data=dataclasses.replace(STAGE.data, prefetch=0))
    return positions(open_batches(stage, layouts, bad_records()), 16)


@pytest.mark.parametrize(("prefetch", "threads"), [(0, 2), (3, 1), (1, 4)])
@pytest.mark.parametrize("handed_out", [0, 1, 2, 7])
def test_a_run_goes_on_behind_the_last_batch_that_it_saw(layouts, uninterrupted, handed_out, prefetch, threads):
    """Batches that were made ahead and never asked for are made again; what was counted is right behind each of them,
    for budgets too that are not drawn for a while."""
    stage = dataclasses.replace(STAGE, data=dataclasses.replace(STAGE.data, prefetch=prefetch, threads=threads))
    first = open_batches(stage, layouts, bad_records())
    taken(first, handed_out)
    state = json.loads(json.dumps(first.get_state()))
    again = open_batches(stage, layouts, bad_records())
    for _ in range(2):  # the second time, in the middle of things
        again.set_state(state)
        assert again.get_state() == state and (again.seen, again.bad) == (first.seen, first.bad)
        for (batch, *known), (expected, *others) in zip(positions(again, 9), uninterrupted[handed_out:], strict=False):
            same([batch], [expected])
            assert known == others
    assert uninterrupted[-1][3]["empty conversation"] > 0
    first.close(), again.close()
    assert not [thread for thread in threading.enumerate() if "ThreadPrefetchDatasetIterator" in thread.name]


def test_what_is_no_position(layouts):
    for state in {}, {"step": 1, "streams": [{"batches": {"parent": 3}, "seen": 0, "bad": {}}] * 3}:
        with pytest.raises(CheckpointError, match="does not fit the data"):
            open_batches(STAGE, layouts, records(4)).set_state(state)


def test_random_tokens_are_drawn_anew_for_every_sample(layouts):
    """One record, round after round: each time other tokens; the same ones in the same run."""
    stage = dataclasses.replace(STAGE, budgets=BUDGETS[1:2])
    scores = []
    for _ in range(2):
        batches = open_batches(stage, layouts[1:2], records(1))
        found = np.concatenate([batch["plan.extra.score"] for _, batch in taken(batches, 3)])
        scores.append(found.reshape(-1, found.shape[-1]))
        batches.close()
    np.testing.assert_array_equal(*scores)
    used = scores[0][np.any(scores[0] != 0, axis=1)]
    assert len(np.unique(used, axis=0)) > 5  # of the 24 orders of four tokens


def test_one_round_is_estimated(layouts):
    sources = records(200, bad_every=20)
    stage = dataclasses.replace(STAGE, data=dataclasses.replace(STAGE.data, max_bad_share=0.2))
    estimated = estimate_steps(stage, layouts, sources, seen=100)
    batches, steps = open_batches(stage, layouts, sources), 0
    while batches.seen < 200:
        next(batches)
        steps += 1
    batches.close()
    assert abs(estimated - steps) <= max(3, 0.15 * steps)


def test_errors_reach_whoever_asks_for_batches(layouts):
    batches = open_batches(STAGE, layouts, records(MIN_SEEN * 2, bad_every=2))
    with pytest.raises(DataError, match="empty conversation"):
        taken(batches, 200)
    with pytest.raises(DataError):
        next(batches)
    batches.close()
    nothing = open_batches(
        dataclasses.replace(STAGE, data=dataclasses.replace(STAGE.data, max_bad_share=1.0)),
        layouts,
        records(3, bad_every=1),
    )
    with pytest.raises(DataError, match="100"):
        next(nothing)
    nothing.close()
    with pytest.raises(ConfigError, match="3 hosts"):
        open_batches(STAGE, layouts, records(4), hosts=3)
    fewer = open_batches(STAGE, layouts[:2], records(4))
    with pytest.raises(ConfigError, match="3 budgets"):
        fewer.set_state(open_batches(STAGE, layouts, records(4)).get_state())


def test_a_picture_that_cannot_meet_a_budget_is_a_bad_sample(golden):
    """A single tile has too few tokens, several have enough; a text has no picture, and nothing to meet."""
    model = vila_jax.from_pretrained(golden / "vila" / "checkpoints" / "nvila_lite_qwen2_dynamic", dtype="float32")
    tokens = model.engine.planner.tokens_per_tile

    def layouts(keep):
        data = dataclasses.replace(STAGE.data, max_bad_share=0.6)
        stage = dataclasses.replace(STAGE, budgets=(f"random:{keep}",), data=data)
        return stage, make_layouts(stage, model.config, model.form, model.style, model.preprocessor)

    with pytest.raises(BudgetError, match="only"):
        layouts(model.config.max_tiles * tokens + 1)
    stage, layout = layouts(tokens + 1)
    turns = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "so"})
    texts = [Conversation(f"t{i}", turns) for i in range(20)]
    mixed = grain.MapDataset.concatenate([records(4)["set"], grain.MapDataset.source(texts)])
    batches = open_batches(stage, layout, {"set": mixed})
    [(_, batch)] = taken(batches, 1)
    assert not batch["plan.total"].any() and set(batches.bad) == {"budget not met"}
    batches.close()
