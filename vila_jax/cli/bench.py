"""Measures a model on this machine: both sides of every comparison in one run, repeats taking turns, medians."""

import argparse
from typing import Any

from vila_jax.cli import bench_budgets, bench_compare, bench_hired, bench_load, bench_peer, bench_sweep, bench_train
from vila_jax.cli.bench_stages import STAGES

SUMMARY = "measure a model on this machine"

BENCHES: dict[str, Any] = {
    **STAGES,
    "load": bench_load,
    "train": bench_train,
    "sweep": bench_sweep,
    "compare": bench_compare,
    "peer": bench_peer,
    "hired": bench_hired,
    "budgets": bench_budgets,
}
"""What can be measured, `vila-jax bench NAME`: modules, or objects with the same names inside."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `vila-jax bench NAME`, and the arguments of each."""
    subparsers = parser.add_subparsers(dest="bench", metavar="WHAT", title="what to measure", required=True)
    for name, module in BENCHES.items():
        own = subparsers.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(own)


def run(args: argparse.Namespace) -> int:
    """Runs the one that was asked for."""
    return BENCHES[args.bench].run(args)
