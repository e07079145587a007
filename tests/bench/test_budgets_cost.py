"""Measuring budgets of a narrow model: counts against arithmetic, refusals as rows, and the exam."""

import pytest
from PIL import Image

from vila_jax.bench.budgets.cost import Load, measure_costs
from vila_jax.bench.budgets.exam import examine
from vila_jax.bench.budgets.rows import Bench, Row, make_cases
from vila_jax.bench.budgets.store import Store
from vila_jax.exam.examiner import Examiner
from vila_jax.exam.items import draw_exam
from vila_jax.scenes import draw_scene


@pytest.fixture(scope="module")
def rows(narrow):
    """Of a scene of 96 x 96: five tiles of 36 patches and, without a budget, 12 newlines."""
    load = Load([Image.fromarray(draw_scene(0, split="test").image)], "How many shapes are there?", 3)
    cases = make_cases(["hired:0.4", "hired:5000", "random:0.1"], [])
    measured = measure_costs(narrow, [Row(case) for case in cases], load, 2)
    return {row.case.name: row for row in measured}


def test_tokens_and_flops_follow_the_budget(rows):
    full, more, fewer = (rows[name].cost for name in ("all tokens", "hired:0.4", "random:0.1"))
    assert [(cost.tokens_mean, cost.tokens_max) for cost in (full, more, fewer)] == [(192, 192), (72, 72), (18, 18)]
    assert full.prefill_flops > more.prefill_flops > fewer.prefill_flops
    assert full.decode_flops > more.decode_flops > fewer.decode_flops
    assert more.tower_flops > full.tower_flops == fewer.tower_flops  # hired reads the class token's attention
    projector = 2 * (24 * 48 + 48 * 48)  # per token
    assert (full.projector_flops, more.projector_flops) == (180 * projector, 72 * projector)


def test_the_cache_is_counted_as_it_lies_in_memory(rows):
    """Two layers of keys and values: two heads of 16 in float32, at a bucket of positions."""
    for name, tokens in (("all tokens", 192), ("hired:0.4", 72), ("random:0.1", 18)):
        positions = rows[name].cost.kv_bytes / (2 * 2 * 2 * 16 * 4)
        assert positions.is_integer() and positions > tokens


def test_times_are_medians_of_repeats(rows):
    for row in rows.values():
        if row.cost is None:
            continue
        spreads = (row.cost.tower, row.cost.prefill, row.cost.first_token, row.cost.decode_rate)
        assert all(0 < spread.low <= spread.median <= spread.high for spread in spreads)
        assert row.cost.compile_time > 0
    assert rows["all tokens"].cost.selector is None and rows["random:0.1"].cost.selector.low > 0


def test_a_budget_that_the_model_cannot_have_is_a_row_that_says_why(rows):
    row = rows["hired:5000"]
    assert row.cost is None and "asks for 5000 visual tokens" in row.refused


def test_every_budget_takes_the_same_exam_once(narrow, monkeypatch):
    items = draw_exam(9)
    examiner = Examiner(narrow, batch=4)
    cases = make_cases(["hired:0.2", "random:150"], [])
    bench = Bench({}, tuple(item.question.kind for item in items), [])
    store = Store(None, bench, cases)
    examine(examiner, items, bench, store)
    full, hired, refused = bench.rows
    for row in (full, hired):
        replies = examiner.budgeted(items, row.case.budget)
        assert row.marks.right == "".join(str(int(reply.right)) for reply in replies)
    assert full.marks.tokens_max == 192 and hired.marks.tokens_max == 36 > hired.marks.tokens_mean
    assert refused.marks is None and "asks for 150 visual tokens" in refused.refused  # of an oblong picture
    monkeypatch.setattr(examiner, "budgeted", None)
    examine(examiner, items, bench, store)  # nothing is left to do
