"""Results as tables: one for every bench, a line for every row."""

from collections.abc import Callable, Sequence
from typing import Any

from vila_jax.bench.budgets.table import NOTHING, Table, markdown
from vila_jax.bench.results import Results, Row
from vila_jax.bench.timing import Times
from vila_jax.cli import units

NOTE = (
    "Times: median (10th to 90th percentile). Device: programs on arrays that lie in device memory. Wall: from the "
    "files of the pictures in memory, decoding and resizing them included. Of floor: the least time that FLOPs, bytes "
    "and the rates of the machine allow, as a part of what was measured; FLOPs are those of matrix products that the "
    "request needs, without padding; bytes those of weights, keys and values. Planned: memory that XLA has planned for "
    "the hungriest program, weights included. Peak: most memory so far of this process, or of its device. Compile: all "
    "programs of the row so far, from nothing."
)
"""What the columns mean."""

_MILLI = 1000


def _percent(value: float) -> str:
    """Two digits at least: `71%`, `7.1%`, `0.71%`."""
    return f"{100 * value:.0f}%" if value >= 0.1 else f"{100 * value:.2g}%"


FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "visual_tokens": ("visual", str),
    "sequence": ("tokens", str),
    "padding": ("padding", _percent),
    "tiles": ("tiles", str),
    "flops": ("work", lambda value: units.rate(value, "FLOP")),
    "file_bytes": ("files", lambda value: units.size(int(value))),
    "bytes_per_second": ("bytes/s", lambda value: units.rate(value, "B/s")),
    "bytes": ("bytes", lambda value: units.size(int(value))),
    "floor_seconds": ("floor ms", lambda value: units.number(_MILLI * value)),
    "of_floor": ("of floor", _percent),
    "of_flops": ("of FLOP/s", _percent),
    "of_bandwidth": ("of bytes/s", _percent),
    "of_plain_read": ("of plain read", _percent),
    "of_kept_read": ("of kept read", _percent),
    "mapped_of_plain_read": ("mapped, of plain read", _percent),
    "mapped": ("mapped", _percent),
    "tokens_per_second": ("tokens/s", units.number),
    "tokens_per_second_of_wall": ("tokens/s of wall", units.number),
    "decode_tokens_per_second": ("decode tokens/s", units.number),
    "requests_per_second": ("requests/s", units.number),
    "pictures_per_second": ("pictures/s", units.number),
    "gain_of_wall": ("gain, wall", lambda value: f"{value:.2f} x"),
    "gain_of_first_token": ("gain, first token", lambda value: f"{value:.2f} x"),
    "gain_of_floor": ("gain, floor", lambda value: f"{value:.2f} x"),
    "prefill_against_peer": ("prefill against sdpa", lambda value: f"{value:.2f} x"),
    "decode_against_peer": ("decode against sdpa", lambda value: f"{value:.2f} x"),
    "logit_difference": ("logits differ by", lambda value: f"{value:.1e}"),
    "same_ids": ("same ids", lambda value: "yes" if value else "no"),
    "planned_bytes": ("planned", lambda value: units.size(int(value))),
    "peak_bytes": ("peak", lambda value: units.size(int(value))),
    "compile_seconds": ("compile s", units.number),
}
"""Name of a fact -> its column, and how it is written. Facts that are not here are in the JSON alone."""


def make_tables(results: Results) -> list[Table]:
    """A table for every bench, in the order of the rows."""
    names = list(dict.fromkeys(row.bench for row in results.rows))
    return [_table(name, [row for row in results.rows if row.bench == name]) for name in names]


def describe(results: Results) -> str:
    """When, on what and with which command the rows were made, in one sentence each."""
    known = results.settings
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    lines = [f"{known['date']}, {known['machine']}, device {known['device']}; {versions}."]
    if "rates" in known:
        rates = known["rates"]
        flops, bandwidth = units.rate(rates["flops"], "FLOP/s"), units.rate(rates["bandwidth"], "B/s")
        lines.append(f"Floors: {flops} and {bandwidth}, {rates['source']}.")
    least = min((times.repeats for row in results.rows for times in row.times.values()), default=0)
    most = max((times.repeats for row in results.rows for times in row.times.values()), default=0)
    lines.append(f"Repeats: {least}." if least == most else f"Repeats: {least} to {most}; fewer where one takes long.")
    return " ".join(lines)


def page(results: Results, pictures: Sequence[str] = ()) -> str:
    """All tables as a page of Markdown.

    Args:
      pictures: names of files beside it.
    """
    command = results.settings["command"]
    parts = [
        f"<!-- Made by `{command}`; not edited by hand. -->",
        f"```\n{command}\n```",
        describe(results),
        *(f"![{name}]({name})" for name in pictures),
        *map(markdown, make_tables(results)),
    ]
    if refused := refusals(results):
        parts += ["Refused:", "\n".join(f"* {name}: {reason}" for name, reason in refused)]
    return "\n\n".join([*parts, NOTE]) + "\n"


def refusals(results: Results) -> list[tuple[str, str]]:
    """What could not be measured, and why."""
    return [(row.title, row.refused) for row in results.rows if row.refused is not None]


def times_text(times: Times) -> str:
    """Milliseconds: `12.3 (12.1 to 12.9)`."""
    low, median, high = (units.number(_MILLI * value) for value in (times.p10, times.median, times.p90))
    return f"{median} ({low} to {high})"


def _table(name: str, rows: Sequence[Row]) -> Table:
    """Columns are those that any of the rows has; a case that all rows share stands in the title."""
    cases = [dict(row.named) for row in rows]
    columns = list(dict.fromkeys(key for case in cases for key in case))
    shared = [key for key in columns if len({case.get(key) for case in cases}) == 1]
    own = [key for key in columns if key not in shared] or shared[-1:]
    clocks = list(dict.fromkeys(clock for row in rows for clock in row.times))
    facts = [fact for fact in FACTS if any(fact in row.facts for row in rows)]
    headers = (*own, *(f"{clock} ms".replace("_", " ") for clock in clocks), *(FACTS[fact][0] for fact in facts))
    lines = []
    for row, case in zip(rows, cases, strict=True):
        times = [times_text(row.times[clock]) if clock in row.times else NOTHING for clock in clocks]
        counted = [FACTS[fact][1](row.facts[fact]) if fact in row.facts else NOTHING for fact in facts]
        lines.append((*(str(case.get(key, NOTHING)) for key in own), *times, *counted))
    common = ", ".join(f"{key} {cases[0][key]}" for key in shared if key not in own)
    return Table(name.capitalize() + (f" ({common})" if common else ""), headers, lines)
