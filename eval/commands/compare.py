"""Compares runs sample by sample: the mean difference with its 95 % interval and the p-value of a paired test.

A and B are each the folder of one run, or the --out of many, which are then matched by task, shots and budget.
"""

import argparse
import math
from pathlib import Path

from eval.runs.compare import Comparison, compare
from eval.runs.folder import ALL_TOKENS, find_runs
from eval.runs.score import Scored, load
from vila_jax.cli import terminal
from vila_jax.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval compare`."""
    parser.add_argument("first", type=Path, metavar="A", help="the baseline")
    parser.add_argument("second", type=Path, metavar="B", help="what is compared with it")
    parser.add_argument("--variant", metavar="NAME", help="of the metric (default: the one of the task)")


def run(args: argparse.Namespace) -> int:
    """Compares and prints."""
    pairs = _pairs(args.first, args.second)
    made = terminal.table(None, "task", "A", "B", "value A", "value B", "B less A", "95 %", "p", "n")
    for first, second in pairs:
        a, b = load(first, args.variant), load(second, args.variant)
        made.add_row(*map(terminal.plain, _cells(a, b, compare(b, a))))
    terminal.stdout().print(made)
    return 0


def _pairs(first: Path, second: Path) -> list[tuple[Path, Path]]:
    """Runs that are compared: the only one of each, else those that lie at the same place."""
    own, other = find_runs(first), find_runs(second)
    if len(own) == len(other) == 1:
        return [(own[0], other[0])]
    places = {path.relative_to(second): path for path in other}
    pairs = [(path, places[path.relative_to(first)]) for path in own if path.relative_to(first) in places]
    if not pairs:
        fix = "Give the folders of two runs, or two --out with runs of the same tasks and budgets."
        raise DataError("they have no run in common", where=f"{first} and {second}", fix=fix)
    return pairs


def _cells(a: Scored, b: Scored, found: Comparison) -> list[str]:
    scale = a.metric.scale
    budgets = [run.header["budget"] or ALL_TOKENS for run in (a, b)]
    if math.isnan(found.difference):
        return [a.name, *budgets, "—", "—", "not scored", "", "", str(found.n)]
    apart = f" ({found.apart} in one only)" if found.apart else ""
    return [
        a.name,
        *budgets,
        f"{scale * found.baseline:.1f}",
        f"{scale * found.value:.1f}",
        f"{scale * found.difference:+.1f}",
        f"{scale * found.low:+.1f} to {scale * found.high:+.1f}",
        "bootstrap" if found.p_value is None else f"{found.p_value:.2g}",
        f"{found.n}{apart}",
    ]
