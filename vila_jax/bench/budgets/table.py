"""The results as tables: for a terminal, as Markdown, as CSV."""

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vila_jax.bench.budgets.rows import Bench, Cost, Marks, Row, Spread
from vila_jax.exam.items import GROUPS

NOTE = (
    "Tokens: visual ones that the decoder is given; a budget inside the decoder drops some of them later. Times: "
    "medians of interleaved repeats, after ± half the distance from the least to the greatest, of a whole batch; "
    "counts are those of one picture. FLOPs: 2 m k n for every product of [m, k] and [k, n] in the programs as they "
    "run (a multiply-add is two), convolutions alike, padding to static sizes and masked attention included, and "
    "nothing else. ViT: the vision tower, with what the budget reads of it. Selector: the choice by itself, which "
    "runs as part of the program that projects; a budget inside the tower or the decoder is part of these. KV: the "
    "cache as it lies in memory. TTFT: wall time from opened picture and prompt to the first token. Compile: all "
    "programs of the request, from nothing."
)
"""What the columns mean."""

NOTHING = "—"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text; the first column is a name, the others are numbers."""

    title: str | None
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(bench: Bench) -> list[Table]:
    """With an exam how many answers are right; what budgets compute, and how long that takes."""
    computed = _table(bench, "What is computed", _counts(bench))
    timed = _table(bench, "How long it takes", _TIMES)
    return [*([_accuracies(bench)] if bench.kinds else []), computed, timed]


def refusals(bench: Bench) -> list[tuple[str, str]]:
    """Budgets that the model cannot have, and why."""
    return [(row.case.name, row.refused) for row in bench.rows if row.refused is not None]


def markdown(table: Table) -> str:
    """A table of a Markdown page, under its title."""
    lines = [table.columns, (":--", *("--:" for _ in table.columns[1:])), *table.rows]
    title = "" if table.title is None else f"{table.title}:\n\n"
    return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(bench: Bench, path: pathlib.Path) -> None:
    """One line per row, plain numbers: seconds, FLOPs, bytes, and fractions of 1."""
    records = [_record(bench, row) for row in bench.rows]
    columns = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(records)


def _record(bench: Bench, row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {
        "budget": row.case.budget or "",
        "method": row.case.method,
        "keep": row.case.keep,
        "refused": row.refused or "",
    }
    if row.tokens is not None:
        record |= {"tokens_mean": row.tokens[0], "tokens_max": row.tokens[1]}
    if row.cost is not None:
        for name in (field.name for field in dataclasses.fields(Cost) if not field.name.startswith("tokens_")):
            value = getattr(row.cost, name)
            if isinstance(value, Spread):
                record |= {name: value.median, f"{name}_low": value.low, f"{name}_high": value.high}
            else:
                record[name] = value
    for group in GROUPS:
        if (score := bench.score(row, group)) is not None:
            low, high = bench.bounds(row, group)
            record |= {f"accuracy_{group}": score.accuracy, f"{group}_low": low, f"{group}_high": high}
    return record


_Column = tuple[str, Callable[[Cost], str]]
_FLOPS = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
_BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))
_TIMES: tuple[_Column, ...] = (
    ("ViT ms", lambda cost: _milli(cost.tower)),
    ("selector ms", lambda cost: NOTHING if cost.selector is None else _milli(cost.selector)),
    ("prefill ms", lambda cost: _milli(cost.prefill)),
    ("TTFT ms", lambda cost: _milli(cost.first_token)),
    ("decode tokens/s", lambda cost: f"{cost.decode_rate.median:,.0f} ± {_half(cost.decode_rate):,.0f}"),
)


def _counts(bench: Bench) -> tuple[_Column, ...]:
    """Columns in units that suit the largest values."""
    costs = [row.cost for row in bench.rows if row.cost is not None]
    one, flops = _unit((cost.prefill_flops for cost in costs), _FLOPS)
    small, per_token = _unit((cost.decode_flops for cost in costs), _FLOPS)
    part, size = _unit((cost.kv_bytes for cost in costs), _BYTES)
    return (
        (f"ViT {flops}", lambda cost: f"{cost.tower_flops / one:,.1f}"),
        (f"selector {flops}", lambda cost: f"{cost.selector_flops / one:,.1f}"),
        (f"projector {flops}", lambda cost: f"{cost.projector_flops / one:,.1f}"),
        (f"prefill {flops}", lambda cost: f"{cost.prefill_flops / one:,.1f}"),
        (f"sum {flops}", lambda cost: f"{cost.total_flops / one:,.1f}"),
        (f"decode {per_token}/token", lambda cost: f"{cost.decode_flops / small:,.2f}"),
        (f"KV {size}", lambda cost: f"{cost.kv_bytes / part:,.0f}"),
        ("compile s", lambda cost: f"{cost.compile_time:.1f}"),
    )


def _unit(values: Iterable[float], units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit of which the largest value is at least ten, else the smallest."""
    largest = max(values, default=0.0)
    return next((unit for unit in units if largest >= 10 * unit[0]), units[-1])


def _table(bench: Bench, title: str, columns: Sequence[_Column]) -> Table:
    rows = []
    for row in bench.rows:
        cells = [NOTHING if row.cost is None else write(row.cost) for _, write in columns]
        rows.append((row.case.name, _tokens(row, row.cost), *cells))
    return Table(title, ("budget", "tokens mean (max)", *(name for name, _ in columns)), rows)


def _accuracies(bench: Bench) -> Table:
    title = f"Right answers in % of {len(bench.kinds):,} held-out questions (95 % interval)"
    rows = []
    for row in bench.rows:
        cells = [_accuracy(bench, row, group) for group in GROUPS]
        rows.append((row.case.name, _tokens(row, row.marks), *cells))
    return Table(title, ("budget", "tokens mean (max)", *GROUPS), rows)


def _tokens(row: Row, known: Cost | Marks | None) -> str:
    """Of the pictures that were timed, or of those of the exam."""
    if row.refused is not None:
        return "refused"
    return NOTHING if known is None else f"{known.tokens_mean:.1f} ({known.tokens_max})"


def _accuracy(bench: Bench, row: Row, group: str) -> str:
    score = bench.score(row, group)
    if score is None or not score.asked:
        return NOTHING
    low, high = bench.bounds(row, group)
    return f"{100 * score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _milli(spread: Spread) -> str:
    return f"{1000 * spread.median:.1f} ± {1000 * _half(spread):.1f}"


def _half(spread: Spread) -> float:
    return (spread.high - spread.low) / 2
