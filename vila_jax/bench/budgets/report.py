"""The page of a bench: which method wins where, and all tables, as Markdown made from the rows alone."""

import pathlib
from collections.abc import Sequence

from vila_jax.bench.budgets.rows import ALL_TOKENS, BASELINES, Bench, Difference, Row
from vila_jax.bench.budgets.table import NOTE, NOTHING, Table, markdown, refusals, tables
from vila_jax.errors import VilaError
from vila_jax.exam.items import GROUPS

FIRST_LINE = "<!-- Made by `vila-jax bench budgets`; not edited by hand. -->"

_CAPTIONS = {"coarse": "what is where: colours, shapes, counts, places", "fine": "reading: digits and words"}
_RIVALS = ("random", "downsample")
_SURE = (
    "All budgets answer the same questions. A difference is *sure* (bold) where its 95 % interval (paired; Bonett and "
    "Price 2012) does not hold zero; of comparisons between equally good methods one in twenty comes out sure by "
    "chance. Distances are in percentage points at the same KEEP."
)


def check_page(path: pathlib.Path) -> None:
    """Refuses to overwrite a page that somebody wrote.

    Raises:
      VilaError: the file exists and was not made here.
    """
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(FIRST_LINE):
        raise VilaError(
            "this page was not made by `vila-jax bench budgets`",
            where=str(path),
            fix="Choose another folder for --out.",
        )


def page(bench: Bench, *, command: str, made: str, chart: str) -> str:
    """The whole page.

    Args:
      command: that makes it again.
      made: when, and on what.
      chart: name of the picture file beside it.
    """
    settings = bench.settings
    parts = [
        FIRST_LINE,
        f"# Visual-token budgets of `{settings['model']}`, measured",
        f"```\n{command}\n```",
        f"{made} Timed: a batch of {settings['batch']}, {settings['new_tokens']} tokens generated, "
        f"{settings['repeats']} repeats in which all budgets take turns.",
        f"![accuracy and costs of every budget]({chart})",
    ]
    if bench.kinds:
        parts += ["## Which method wins where", *_verdicts(bench)]
    parts += ["## All numbers", NOTE, *(markdown(table) for table in tables(bench))]
    if reasons := refusals(bench):
        parts += ["Refused:", "\n".join(f"* `{name}`: {reason}" for name, reason in reasons)]
    return "\n\n".join(parts) + "\n"


def _verdicts(bench: Bench) -> list[str]:
    """At every KEEP and for both groups of questions: the best, whom a baseline beats, and the ranking."""
    kinds, coarse = len(bench.kinds), sum(kind in GROUPS["coarse"] for kind in bench.kinds)
    parts = [
        f"{kinds:,} held-out scenes, one question each: {coarse:,} *coarse* ({_CAPTIONS['coarse']}) and "
        f"{kinds - coarse:,} *fine* ({_CAPTIONS['fine']}). {_SURE}"
    ]
    for rows in _by_keep(bench):
        parts.append(f"### {_title(rows)}")
        for group in _CAPTIONS:
            ranked = sorted(rows, key=lambda row: -_percent(bench, row, group))
            parts += [_verdict(bench, ranked, group), markdown(_ranking(bench, ranked, group))]
    return parts


def _by_keep(bench: Bench) -> list[list[Row]]:
    """The methods that took the exam, those at the same KEEP together; whole budgets and all tokens are left out."""
    found: dict[float | int, list[Row]] = {}
    for row in bench.rows:
        if row.marks is not None and row.case.keep is not None:
            found.setdefault(row.case.keep, []).append(row)
    return list(found.values())


def _title(rows: Sequence[Row]) -> str:
    """`KEEP 20 %: 33.1 visual tokens on average`, or the least and the greatest average where methods differ."""
    keep, means = rows[0].case.keep, sorted({f"{row.tokens[0]:.1f}" for row in rows if row.tokens}, key=float)
    name = f"{100 * keep:g} %" if isinstance(keep, float) else f"{keep} tokens"
    spent = means[0] if len(means) == 1 else f"{means[0]} to {means[-1]}"
    return f"KEEP {name}: {spent} visual tokens on average"


def _verdict(bench: Bench, ranked: Sequence[Row], group: str) -> str:
    best, *others = ranked
    sentences = [f"**{group.capitalize()} questions.**"]
    if others:
        equal = [row for row in others if not bench.difference(best, row, group).sure]
        rest = f"not surely worse: {_listed(equal)}" if equal else "all others are surely worse"
        sentences.append(f"`{best.case.method}` answers most; {rest}.")
    for baseline in (row for row in ranked if row.case.method in BASELINES):
        beaten = [
            row
            for row in ranked
            if row.case.method not in BASELINES and bench.difference(row, baseline, group).sure < 0
        ]
        if beaten:
            sentences.append(f"`{baseline.case.method}` surely beats {_listed(beaten)}.")
    return " ".join(sentences)


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(f"`{row.case.method}`" for row in rows)


def _ranking(bench: Bench, ranked: Sequence[Row], group: str) -> Table:
    """Methods by their right answers, with the distance to baselines in percentage points."""
    rivals = [row for name in _RIVALS for row in ranked if row.case.method == name]
    full = [row for row in bench.rows if row.case.method == ALL_TOKENS and row.marks is not None]
    rows = []
    for row in (*full, *ranked):
        time = NOTHING if row.cost is None else f"{1000 * row.cost.first_token.median:.1f}"
        distances = [NOTHING if row is rival else _points(bench.difference(row, rival, group)) for rival in rivals]
        assert row.tokens is not None
        rows.append((row.case.method, f"{row.tokens[0]:.1f}", time, f"{_percent(bench, row, group):.1f}", *distances))
    columns = (
        "method",
        "tokens",
        "TTFT ms",
        f"{group}, % right",
        *(f"above `{rival.case.method}`" for rival in rivals),
    )
    return Table(None, columns, rows)


def _percent(bench: Bench, row: Row, group: str) -> float:
    score = bench.score(row, group)
    assert score is not None
    return 100 * score.accuracy


def _points(difference: Difference) -> str:
    text = f"{100 * difference.mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
    return f"**{text}**" if difference.sure else text
