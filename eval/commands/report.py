"""Writes the page about runs again: report.html, with tables, charts and wrong answers in one file."""

import argparse
from pathlib import Path

from rich.console import Console

from eval.runs.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval report`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what was --out of a run")


def run(args: argparse.Namespace) -> int:
    """Writes the page."""
    Console(stderr=True, highlight=False).print(f"wrote {write_report(args.folder)}", soft_wrap=True)
    return 0
