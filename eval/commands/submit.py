"""Writes the answers of a run in the form that the server of its benchmark takes: vqav2, docvqa, mmbench, mmvet."""

import argparse
from pathlib import Path

from rich.console import Console

from eval.runs.submit import submit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval submit`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of one run")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help=".json, of mmbench .xlsx")
    parser.add_argument("--gaps", action="store_true", help="leave the answers of failed samples empty")
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="JSON",
        help="of vqav2: all questions of the test split, of which test-dev is a part",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the file."""
    count = submit(args.folder, args.to, gaps=args.gaps, questions=args.questions)
    Console(stderr=True, highlight=False).print(f"wrote {count} answers to {args.to}", soft_wrap=True)
    return 0
