"""`python -m eval WHAT`: runs of benchmarks and what is made of them, and the measurements behind `docs/`."""

import argparse
import sys
from types import ModuleType

from eval import nano, nano_fewshot, quantization, studies
from eval.commands import compare, judge, merge, report, run, score, submit
from vila_jax.errors import VilaError
from vila_jax.heap import keep_freed_memory

COMMANDS: dict[str, ModuleType] = {
    "run": run,
    "score": score,
    "merge": merge,
    "compare": compare,
    "report": report,
    "judge": judge,
    "submit": submit,
    "nano": nano,
    "fewshot": nano_fewshot,
    "quantization": quantization,
    "study": studies,
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").partition("\n")[0]
        command.add_arguments(commands.add_parser(name, help=summary, description=command.__doc__))
    args = parser.parse_args(argv)
    keep_freed_memory()
    try:
        return COMMANDS[args.what].run(args)
    except VilaError as error:
        nano.console.print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
