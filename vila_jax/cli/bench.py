"""Measures a model on this machine: both sides of every comparison in one run, repeats taking turns, medians."""

import argparse
from types import ModuleType

from vila_jax.cli import bench_budgets

SUMMARY = "measure a model on this machine"

BENCHES: dict[str, ModuleType] = {"budgets": bench_budgets}
"""What can be measured: `vila-jax bench NAME`."""


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
