"""Compares two JSON files of benches, row by row: new over old, so that less than 1 is faster.

A ratio counts where the spreads of the repeats, from the 10th to the 90th percentile, do not meet.
"""

import argparse
import pathlib

from vila_jax.cli import arguments, terminal

SUMMARY = "two results beside each other"

_COLORS = {"faster": "green", "slower": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax bench compare`."""
    parser.add_argument("old", metavar="OLD", type=pathlib.Path, help="written by --json")
    parser.add_argument("new", metavar="NEW", type=pathlib.Path, help="likewise, later")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compares."""
    from vila_jax.bench.compare import compare
    from vila_jax.bench.results import read_results
    from vila_jax.cli.bench_tables import times_text

    found = compare(read_results(args.old), read_results(args.new))
    if args.json:
        terminal.print_json(found.to_json())
        return 0
    table = terminal.table(None, "row", "clock", "old ms", "new ms", "new / old", "")
    for change in found.changes:
        color = _COLORS.get(change.verdict)
        verdict = f"[{color}]{change.verdict}[/]" if color else change.verdict
        times = times_text(change.old), times_text(change.new)
        table.add_row(terminal.plain(change.row), change.clock, *times, f"{change.ratio:.3f}", verdict)
    console = terminal.stdout()
    console.print(table)
    for row in found.missing:
        console.print(f"in one of them alone: {terminal.plain(row)}")
    if found.differing:
        console.print(f"[yellow]measured with another {' and '.join(found.differing)}[/]")
    return 0
