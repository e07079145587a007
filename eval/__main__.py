"""`python -m eval WHAT`: runs of benchmarks and what is made of them, and the measurements behind `docs/`."""

import argparse
import importlib
import sys
from collections.abc import Mapping
from types import ModuleType

from vila_jax.cli import terminal
from vila_jax.errors import ConfigError, VilaError
from vila_jax.heap import keep_freed_memory

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("eval.commands.run", "asks a model the questions of benchmarks, and scores the answers"),
    "score": ("eval.commands.score", "scores runs again from their files, without the model"),
    "merge": ("eval.commands.merge", "puts the shares of several hosts together"),
    "compare": ("eval.commands.compare", "compares runs sample by sample"),
    "report": ("eval.commands.report", "writes the page about runs again"),
    "judge": ("eval.commands.judge", "has a language model judge answers"),
    "submit": ("eval.commands.submit", "writes answers in the form that the server of a benchmark takes"),
    "nano": ("eval.nano", "examines the embedded model"),
    "fewshot": ("eval.nano_fewshot", "shows the embedded model tasks by examples alone"),
    "quantization": ("eval.quantization", "measures what weights and caches in fewer bits cost"),
    "study": ("eval.studies", "small experiments, each against a baseline"),
}
"""Module and summary. Only the module of the command that is asked for is imported: some need more packages."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns an exit code."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    chosen: ModuleType | None = None
    try:
        for name, (_, summary) in COMMANDS.items():
            own = commands.add_parser(name, help=summary)
            if words[:1] == [name]:
                chosen = _load(name, own)
        args = parser.parse_args(words)
        keep_freed_memory()
        assert chosen is not None  # or the parser would have ended the program
        return chosen.run(args)
    except VilaError as error:
        terminal.stderr().print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code


def _load(name: str, parser: argparse.ArgumentParser) -> ModuleType:
    """Imports the module of a command, which declares its arguments.

    Raises:
      ConfigError: it needs a package that is not installed.
    """
    try:
        command = importlib.import_module(COMMANDS[name][0])
        command.add_arguments(parser)
    except ModuleNotFoundError as error:
        fix = "pip install -e '.[eval]'; for fewshot and study, which train or use the data of training, '.[train]'"
        raise ConfigError(f"the package {error.name} is not installed", where=f"eval {name}", fix=fix) from error
    parser.description = command.__doc__
    return command


if __name__ == "__main__":
    sys.exit(main())
