"""Rows, means, deviations and tables, worked out by hand."""

import json
import statistics

import pytest

from vila_jax.exam.examiner import Setting
from vila_jax.exam.items import Reply, draw_exam, interval
from vila_jax.exam.results import LABELS, markdown, tabulate
from vila_jax.scenes import FINE


@pytest.fixture(scope="module")
def items():
    return draw_exam(18)


def _replies(items, right, tokens):
    """The first `right` answers are right."""
    return [Reply(item, item.question.answer if i < right else "", tokens) for i, item in enumerate(items)]


@pytest.fixture(scope="module")
def rows(items):
    return tabulate(
        {
            Setting("blank"): _replies(items, 3, 192),
            Setting("random", 0.2, 0): _replies(items, 6, 36),
            Setting("random", 0.2, 1): _replies(items, 9, 36),
            Setting("hired", 0.2): _replies(items, 12, 36),
            Setting("full"): _replies(items, 18, 192),
            Setting("hired", 0.4): _replies(items, 15, 72),
        }
    )


def test_one_row_for_each_method_and_fraction_in_a_fixed_order(rows):
    assert [row.label for row in rows] == [
        "all tokens",
        "HiRED, 40 %",
        "HiRED, 20 %",
        "random tokens, 20 %",
        "blank picture (control)",
    ]
    assert [row.tokens for row in rows] == [192, 72, 36, 36, 192]
    assert [row.seeds for row in rows] == [1, 1, 1, 2, 1]


def test_seeds_are_averaged(rows):
    random = rows[3]
    assert random.accuracy() == pytest.approx((6 / 18 + 9 / 18) / 2)
    assert random.deviation() == pytest.approx(statistics.stdev([6 / 18, 9 / 18]))
    assert random.interval() == interval(7.5 / 18, 18)  # of the scenes: not as if there were 36
    assert rows[0].deviation() is None


def test_groups_are_scored_apart(rows, items):
    fine = [i for i, item in enumerate(items) if item.question.kind in FINE]
    assert rows[2].accuracy("fine") == pytest.approx(sum(i < 12 for i in fine) / len(fine))
    assert rows[2].accuracy("word") == pytest.approx(
        statistics.fmean(i < 12 for i, item in enumerate(items) if item.question.kind == "word")
    )


def test_json_is_plain_and_complete(rows):
    [full, *_, random, _] = json.loads(json.dumps([row.to_json() for row in rows]))
    assert full["accuracy"]["all"]["right"] == [18] and full["accuracy"]["all"]["asked"] == 18
    assert random["accuracy"]["all"]["right"] == [6, 9]
    assert random["accuracy"]["all"]["sd_over_seeds"] == pytest.approx(statistics.stdev([6 / 18, 9 / 18]))
    assert {"all", "coarse", "fine", "count", "digits"} <= random["accuracy"].keys()


def test_kinds_that_were_not_asked_are_no_numbers(items):
    few = [item for item in items if item.question.kind == "color"]
    rows = tabulate({Setting("random", 0.2, seed): _replies(few, 1, 36) for seed in range(2)})
    found = json.loads(json.dumps(rows[0].to_json(), allow_nan=False))["accuracy"]
    assert found["color"]["asked"] == len(few) and found["fine"]["asked"] == 0
    assert found["fine"]["mean"] is found["fine"]["low"] is found["word"]["sd_over_seeds"] is None
    assert markdown(rows)


def test_markdown(rows):
    lines = markdown(rows).splitlines()
    [random] = [line for line in lines if line.startswith("| random tokens, 20 %")]
    low, high = (100 * bound for bound in interval(7.5 / 18, 18))
    assert random.startswith(f"| random tokens, 20 % | 36 | 41.7 ± 11.8 ({low:.1f} to {high:.1f}) |")
    [head] = [line for line in lines if line.startswith("| kind")]
    assert head == "| kind | asked | all tokens | HiRED, 20 % | random tokens, 20 % | blank picture (control) |"
    widths = {line.count("|") for line in lines if line.startswith(("| kind", "| color", "| word"))}
    assert len(widths) == 1


def test_every_method_has_a_name():
    assert set(LABELS) == set(Setting.__annotations__["method"].__args__)
