"""Small experiments, each against a baseline on the same task.

A study is a module of this folder that is named in `NAMES`. It writes `NAME.json` and `NAME.png`, and its tables to the
page `NAME.md`, all into the folder given by `--out`.
"""

import argparse
import importlib
import importlib.util
from pathlib import Path
from typing import Protocol, cast

NAMES = ("encoder_pruning", "caption_alignment", "channel_pruning", "vila_findings")


class Study(Protocol):
    """What the module of a study holds."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the arguments that this study has besides those of every study."""
        ...

    def run(self, args: argparse.Namespace) -> None:
        """Trains, measures, and writes the files."""
        ...


def available() -> dict[str, Study]:
    """The studies that this checkout has, by name."""
    modules = {name: f"{__name__}.{name}" for name in NAMES}
    return {
        name: cast(Study, importlib.import_module(module))
        for name, module in modules.items()
        if importlib.util.find_spec(module)
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `NAME` and the arguments of every study: `out`, `seeds`, `quick`."""
    names = parser.add_subparsers(dest="study", required=True, metavar="NAME")
    for name, study in available().items():
        own = names.add_parser(name, help=study.SUMMARY, description=study.SUMMARY)
        own.add_argument(
            "--out",
            type=Path,
            default=Path("docs/studies"),
            metavar="DIR",
            help="folder of the page, the chart and the JSON file (default: docs/studies)",
        )
        own.add_argument("--seeds", type=_positive, default=3, metavar="N", help="training runs of a kind (default: 3)")
        own.add_argument("--quick", action="store_true", help="seconds instead of minutes: it runs, but shows nothing")
        study.add_arguments(own)


def run(args: argparse.Namespace) -> int:
    """Runs the study that was named, and returns an exit code."""
    available()[args.study].run(args)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)
