"""Scores runs again from their files, without the model, perhaps by another variant of the metric."""

import argparse
from pathlib import Path

from eval.commands import tables
from eval.runs.folder import find_runs
from eval.runs.score import score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval score`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what was --out of a run, or a folder below it")
    parser.add_argument("--variant", metavar="NAME", help="of the metric (default: the one of the task)")


def run(args: argparse.Namespace) -> int:
    """Scores; the status is not 0 if samples failed or are missing."""
    folders = find_runs(args.folder)
    results = [score(folder, args.variant) for folder in folders]
    tables.show(folders, args.variant)
    return 1 if any(result["n"]["failed"] or result["n"]["missing"] for result in results) else 0
