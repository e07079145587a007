"""Cases, intervals, the file, tables, page and chart, on rows written by hand."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from vila_jax.bench.budgets.chart import draw_chart
from vila_jax.bench.budgets.report import FIRST_LINE, check_page, page
from vila_jax.bench.budgets.rows import ALL_TOKENS, Bench, Case, Cost, Marks, Row, Spread, make_cases
from vila_jax.bench.budgets.store import Store
from vila_jax.bench.budgets.table import refusals, tables, write_csv
from vila_jax.budgets import METHODS
from vila_jax.errors import BudgetError, VilaError
from vila_jax.exam.items import interval

SETTINGS = {"model": "nano", "batch": 1, "new_tokens": 9, "repeats": 3}
KINDS = ("color", "digit") * 60  # 60 coarse and 60 fine questions
FULL = Case(ALL_TOKENS, None, None)
HIRED, RANDOM = Case("hired", 0.2, "hired:0.2"), Case("random", 0.2, "random:0.2")
TOO_MANY = Case("hired", 5000, "hired:5000")


def _cost(tokens, first_token):
    seconds = Spread(first_token, 0.5 * first_token, 2 * first_token)
    return Cost(float(tokens), tokens, 3e6, 0.0, 1e6, 2e7, 1e6, 2.0**20, 1.5, seconds, None, seconds, seconds, seconds)


def _marks(coarse, fine, tokens):
    """So many right answers of either group."""
    return Marks("".join(f"{int(i < coarse)}{int(i < fine)}" for i in range(60)), float(tokens), tokens)


@pytest.fixture
def bench():
    rows = [
        Row(FULL, None, _cost(192, 0.08), _marks(58, 50, 192)),
        Row(HIRED, None, _cost(36, 0.05), _marks(54, 12, 36)),
        Row(RANDOM, None, _cost(36, 0.04), _marks(40, 30, 36)),
        Row(TOO_MANY, "a picture has only 180"),
    ]
    return Bench(SETTINGS, KINDS, rows)


def test_every_method_is_combined_with_every_keep():
    cases = make_cases(["hired,alpha=0.3", "random"], ["0.4", "20%", "72"])
    assert [(case.method, case.keep, case.budget) for case in cases] == [
        (ALL_TOKENS, None, None),
        ("hired,alpha=0.3", 0.4, "hired:0.4,alpha=0.3"),
        ("hired,alpha=0.3", 0.2, "hired:0.2,alpha=0.3"),
        ("hired,alpha=0.3", 72, "hired:72,alpha=0.3"),
        ("random", 0.4, "random:0.4"),
        ("random", 0.2, "random:0.2"),
        ("random", 72, "random:72"),
    ]


def test_whole_budgets_are_one_case_and_twins_are_left_out():
    assert [case.name for case in make_cases(["hired:0.3", "random", "hired"], ["0.3", "30%"])] == [
        ALL_TOKENS,
        "hired:0.3",
        "random:0.3",
    ]


def test_by_default_all_methods_are_measured():
    assert [case.method for case in make_cases(None, ["0.4"])] == [ALL_TOKENS, *METHODS]


@pytest.mark.parametrize(("methods", "keeps"), [(["hierd"], ["0.4"]), (["hired"], ["4.0"]), (["hired:"], ["0.4"])])
def test_what_is_no_budget_is_refused_at_once(methods, keeps):
    with pytest.raises(BudgetError):
        make_cases(methods, keeps)


def test_groups_are_scored_apart(bench):
    row = bench.rows[1]
    assert [(bench.score(row, group).right, bench.score(row, group).asked) for group in ("all", "coarse", "fine")] == [
        (66, 120),
        (54, 60),
        (12, 60),
    ]
    assert bench.bounds(row, "coarse") == interval(0.9, 60)
    assert bench.score(bench.rows[3]) is None


def test_differences_are_paired():
    """Of many questions the interval is that of the mean of their differences."""
    rng = np.random.default_rng(0)
    first = rng.random(8000) < 0.7
    second = np.where(rng.random(8000) < 0.9, first, rng.random(8000) < 0.3)  # they agree about most questions
    marks = [Marks("".join(map(str, right.astype(int))), 1.0, 1) for right in (first, second)]
    rows = [Row(case, marks=own) for case, own in zip((HIRED, RANDOM), marks, strict=True)]
    found = Bench(SETTINGS, ("color",) * 8000, rows).difference(*rows)
    apart = first.astype(float) - second
    assert found.mean == pytest.approx(apart.mean())
    reach = 1.96 * apart.std() / np.sqrt(8000)
    assert (found.low, found.high) == pytest.approx((apart.mean() - reach, apart.mean() + reach), abs=3e-4)
    assert found.sure == 1


def test_certainty_has_a_sign(bench):
    hired, random = bench.rows[1:3]
    assert [bench.difference(hired, random, group).sure for group in ("coarse", "fine")] == [1, -1]
    assert bench.difference(hired, hired).sure == 0


def test_rows_survive_the_file(bench, tmp_path):
    cases = [row.case for row in bench.rows]
    empty = Bench(SETTINGS, KINDS, [])
    store = Store(tmp_path / "b.json", empty, cases)
    assert store.lacks_costs
    store.put(*bench.rows[:2])
    store.put(*bench.rows[2:])
    again = Bench(SETTINGS, KINDS, [])
    assert not Store(tmp_path / "b.json", again, cases).lacks_costs
    assert again == bench
    assert json.loads((tmp_path / "b.json").read_text())["rows"][1]["accuracy"]["coarse"]["right"] == 54


def test_rows_that_are_not_asked_for_stay_behind_those_that_are(bench, tmp_path):
    Store(tmp_path / "b.json", Bench(SETTINGS, KINDS, []), [row.case for row in bench.rows]).put(*bench.rows)
    new = Case("random", 0.4, "random:0.4")
    again = Bench(SETTINGS, KINDS, [])
    store = Store(tmp_path / "b.json", again, [FULL, new, RANDOM])
    assert [row.case for row in again.rows] == [FULL, new, RANDOM, HIRED, TOO_MANY]
    assert store.lacks_costs
    store.put(Row(new, "no"))
    assert not store.lacks_costs


@pytest.mark.parametrize(
    ("settings", "kinds", "named"),
    [({**SETTINGS, "batch": 8, "repeats": 9}, KINDS, "another batch and repeats"), (SETTINGS, (), "another exam")],
)
def test_other_settings_are_not_mixed(settings, kinds, named, bench, tmp_path):
    Store(tmp_path / "b.json", Bench(SETTINGS, KINDS, []), [FULL]).put(bench.rows[0])
    with pytest.raises(VilaError, match=named):
        Store(tmp_path / "b.json", Bench(settings, kinds, []), [FULL])


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"settings": {}, "kinds": [], "rows": [{}]}'])
def test_a_file_of_something_else_is_refused(text, tmp_path):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(VilaError, match="no result"):
        Store(tmp_path / "b.json", Bench(SETTINGS, KINDS, []), [FULL])


def test_tables_say_units_intervals_and_refusals(bench):
    right, computed, timed = tables(bench)
    assert right.rows[1] == (
        "hired:0.2",
        "36.0 (36)",
        "55.0 (46.1 to 63.6)",
        "90.0 (79.9 to 95.3)",
        "20.0 (11.8 to 31.8)",
    )
    assert computed.columns[5:8] == ("prefill MFLOP", "sum MFLOP", "decode MFLOP/token")
    assert computed.rows[1][2:8] == ("3.0", "0.0", "1.0", "20.0", "24.0", "1.00")
    assert timed.rows[1][5] == "50.0 ± 37.5"
    assert [table.rows[3][1] for table in (right, computed, timed)] == ["refused"] * 3
    assert refusals(bench) == [("hired:5000", "a picture has only 180")]
    assert len(tables(dataclasses.replace(bench, kinds=()))) == 2


def test_units_suit_the_largest_value(bench):
    rows = [
        dataclasses.replace(row, cost=row.cost and dataclasses.replace(row.cost, prefill_flops=9e12))
        for row in bench.rows
    ]
    assert tables(Bench(SETTINGS, KINDS, rows))[1].columns[5] == "prefill GFLOP"


def test_csv_holds_plain_numbers(bench, tmp_path):
    write_csv(bench, tmp_path / "b.csv")
    with (tmp_path / "b.csv").open(newline="") as stream:
        full, hired, _, refused = csv.DictReader(stream)
    assert (full["budget"], full["keep"], hired["budget"], hired["keep"]) == ("", "", "hired:0.2", "0.2")
    assert float(hired["first_token"]) == 0.05 and float(hired["first_token_high"]) == 0.1
    assert float(hired["accuracy_coarse"]) == 0.9
    assert refused["refused"] == "a picture has only 180" and refused["first_token"] == ""


def test_the_page_says_who_wins_where(bench, tmp_path):
    text = page(bench, command="vila-jax bench budgets nano", made="Written by hand.", chart="b.png")
    assert "KEEP 20 %: 36.0 visual tokens" in text
    coarse, fine = text.partition("**Coarse questions.**")[2].split("**Fine questions.**")
    assert coarse.startswith(" `hired` answers most; all others are surely worse.\n")
    assert fine.startswith(" `random` answers most; all others are surely worse. `random` surely beats `hired`.\n")
    assert "| hired | 36.0 | 50.0 | 90.0 | **+23.3 (" in coarse and "| random | 36.0 | 40.0 | 66.7 | — |" in coarse
    assert "* `hired:5000`: a picture has only 180" in text
    (tmp_path / "README.md").write_text(text)
    check_page(tmp_path / "README.md")
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(VilaError, match="not made by"):
        check_page(tmp_path / "README.md")
    assert text.startswith(FIRST_LINE)


RED, GRAY = (0xD1, 0x49, 0x5B), (0x7D, 0x85, 0x92)


def _places(pixels, color, rows, columns):
    """Rows and columns where a colour stands in a part of the picture."""
    height, width, _ = pixels.shape
    part = pixels[int(rows[0] * height) : int(rows[1] * height), int(columns[0] * width) : int(columns[1] * width)]
    return np.argwhere((np.abs(part.astype(int) - color) <= 2).all(axis=-1))


def test_the_chart_has_a_panel_for_both_groups_and_both_axes(bench, tmp_path):
    draw_chart(bench, tmp_path / "b.png", title="title", note="note")
    pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB"))
    for columns in ((0.05, 0.44), (0.5, 0.88)):
        upper, lower = [
            [_places(pixels, color, rows, columns) for color in (RED, GRAY)] for rows in ((0.07, 0.44), (0.54, 0.91))
        ]
        assert np.median(upper[0][:, 0]) < np.median(upper[1][:, 0])  # coarse: hired is above random
        assert np.median(lower[0][:, 0]) > np.median(lower[1][:, 0])  # fine: below
    right = [_places(pixels, color, (0.07, 0.44), (0.5, 0.88)) for color in (RED, GRAY)]
    assert np.median(right[0][:, 1]) > np.median(right[1][:, 1])  # and slower


def test_without_an_exam_the_chart_shows_costs(bench, tmp_path):
    rows = [dataclasses.replace(row, marks=None) for row in bench.rows]
    draw_chart(Bench(SETTINGS, (), rows), tmp_path / "b.png", title="title", note="note")
    pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB"))
    assert len(_places(pixels, RED, (0.1, 0.85), (0.5, 0.85))) > 20
