"""Puts the shares of several hosts together, checks that nothing is missing or stands twice, and scores."""

import argparse
from pathlib import Path

from rich.console import Console

from eval.commands import tables
from eval.runs.folder import find_runs
from eval.runs.merge import merge
from eval.runs.score import score

console = Console(stderr=True, highlight=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval merge`."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="what was --out of all hosts; copy their files here"
    )


def run(args: argparse.Namespace) -> int:
    """Merges and scores; the status is not 0 if samples failed."""
    folders = find_runs(args.folder)
    for folder in folders:
        console.print(f"{folder}: {merge(folder)} samples", soft_wrap=True)
    failed = sum(score(folder)["n"]["failed"] for folder in folders)
    tables.show(folders)
    return 1 if failed else 0
