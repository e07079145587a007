"""`python -m eval WHAT`: measures, and writes what was measured to `docs/`."""

import argparse
import sys

from eval import nano, nano_fewshot, studies
from vila_jax.errors import VilaError
from vila_jax.heap import keep_freed_memory


def main(argv: list[str] | None = None) -> int:
    """Runs one evaluation and returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    evaluations = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    nano.add_arguments(evaluations.add_parser("nano", help=nano.__doc__, description=nano.__doc__))
    fewshot = evaluations.add_parser("fewshot", help=nano_fewshot.__doc__, description=nano_fewshot.__doc__)
    nano_fewshot.add_arguments(fewshot)
    studies.add_arguments(evaluations.add_parser("study", help=studies.__doc__, description=studies.__doc__))
    args = parser.parse_args(argv)
    keep_freed_memory()
    try:
        return {"nano": nano, "fewshot": nano_fewshot, "study": studies}[args.what].run(args)
    except VilaError as error:
        nano.console.print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
