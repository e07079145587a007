"""The results of `vila-jax bench budgets` as tables: for a terminal, as Markdown, as CSV."""

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from vila_jax.bench.budgets_rows import Bench, Cost, Row, Spread
from vila_jax.exam.items import GROUPS

NOTE = (
    "Per picture; medians of interleaved repeats, after ± half the distance from the least to the greatest. FLOPs: two "
    "per multiply-add of every matrix product in the programs as they run, padding to static sizes and masked "
    "attention included; a matrix product of [m, k] and [k, n] is 2 m k n. ViT includes what the budget reads of the "
    "tower. KV: the cache as it lies in memory. TTFT: wall time with the preparation of the picture."
)
"""What the columns mean."""

_NOTHING = "—"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text; the first column is a name, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(bench: Bench) -> list[Table]:
    """What budgets compute, how long it takes, and with an exam how many answers are right."""
    made = [_table(bench, "What is computed", _COUNTS), _table(bench, "How long it takes", _TIMES)]
    if bench.kinds:
        asked = len(bench.kinds)
        columns = ("tokens mean (max)", *(f"{group}" for group in GROUPS))
        rows = [(row.case.name, _tokens(row), *(_accuracy(bench, row, group) for group in GROUPS)) for row in bench.rows]
        made.append(
            Table(f"Right answers in % of {asked} held-out questions (95 % interval)", ("budget", *columns), rows)
        )
    return made


def refusals(bench: Bench) -> list[tuple[str, str]]:
    """Budgets that the model cannot have, and why."""
    return [(row.case.name, row.refused) for row in bench.rows if row.refused is not None]


def markdown(bench: Bench) -> str:
    """All tables, and the refusals."""
    parts = [f"{table.title}:\n\n{_markdown_table(table)}" for table in tables(bench)]
    if reasons := refusals(bench):
        parts.append("Refused:\n\n" + "\n".join(f"* `{name}`: {reason}" for name, reason in reasons))
    return "\n\n".join(parts)


def write_csv(bench: Bench, path: pathlib.Path) -> None:
    """One line per row, plain numbers: seconds, FLOPs, bytes, and fractions of 1."""
    groups = GROUPS if bench.kinds else {}
    records = [_record(bench, row, list(groups)) for row in bench.rows]
    columns = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(records)


def _record(bench: Bench, row: Row, groups: Sequence[str]) -> dict[str, Any]:
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
    for group in groups:
        if (score := bench.score(row, group)) is not None:
            low, high = bench.bounds(row, group)
            record |= {f"accuracy_{group}": score.accuracy, f"{group}_low": low, f"{group}_high": high}
    return record


_Column = tuple[str, Callable[[Cost], str]]
_COUNTS: tuple[_Column, ...] = (
    ("ViT MFLOP", lambda cost: _mega(cost.tower_flops)),
    ("selector MFLOP", lambda cost: _mega(cost.selector_flops)),
    ("projector MFLOP", lambda cost: _mega(cost.projector_flops)),
    ("prefill MFLOP", lambda cost: _mega(cost.prefill_flops)),
    ("sum MFLOP", lambda cost: _mega(cost.total_flops)),
    ("decode MFLOP/token", lambda cost: _mega(cost.decode_flops)),
    ("KV KiB", lambda cost: f"{cost.kv_bytes / 1024:,.0f}"),
    ("compile s", lambda cost: f"{cost.compile_time:.1f}"),
)
_TIMES: tuple[_Column, ...] = (
    ("ViT ms", lambda cost: _milli(cost.tower)),
    ("selector ms", lambda cost: _NOTHING if cost.selector is None else _milli(cost.selector)),
    ("prefill ms", lambda cost: _milli(cost.prefill)),
    ("TTFT ms", lambda cost: _milli(cost.first_token)),
    ("decode tokens/s", lambda cost: f"{cost.decode_rate.median:,.0f} ± {_half(cost.decode_rate):,.0f}"),
)


def _table(bench: Bench, title: str, columns: Sequence[_Column]) -> Table:
    rows = []
    for row in bench.rows:
        cells = [_NOTHING if row.cost is None else write(row.cost) for _, write in columns]
        rows.append((row.case.name, _tokens(row), *cells))
    return Table(title, ("budget", "tokens mean (max)", *(name for name, _ in columns)), rows)


def _tokens(row: Row) -> str:
    if row.refused is not None:
        return "refused"
    return _NOTHING if row.tokens is None else f"{row.tokens[0]:.1f} ({row.tokens[1]})"


def _accuracy(bench: Bench, row: Row, group: str) -> str:
    score = bench.score(row, group)
    if score is None or not score.asked:
        return _NOTHING
    low, high = bench.bounds(row, group)
    return f"{100 * score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _mega(flops: float) -> str:
    return f"{flops / 1e6:,.1f}"


def _milli(spread: Spread) -> str:
    return f"{1000 * spread.median:.1f} ± {1000 * _half(spread):.1f}"


def _half(spread: Spread) -> float:
    return (spread.high - spread.low) / 2


def _markdown_table(table: Table) -> str:
    lines = [table.columns, (":--", *("--:" for _ in table.columns[1:])), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
