"""Measures ours beside transformers + PyTorch: the same weights, prompts and machine, one run, repeats taking turns.

Theirs are eager with scaled-dot-product attention, and the same through torch.compile with a static cache. Prefill is
the time of a one-token answer from prepared pictures; a step is what each further token of a longer answer takes. Needs
the `test` extra.
"""

import argparse
import os

from vila_jax.cli import arguments, measuring
from vila_jax.cli.progress import Progress
from vila_jax.errors import VilaError

SUMMARY = "beside transformers + PyTorch, in the same run"

_DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax bench peer`."""
    measuring.add_model(parser)
    measuring.add_cases(parser, budget="hired:0.2", new_tokens=65)
    parser.add_argument(
        "--dtypes",
        metavar="D,..",
        type=arguments.listed,
        help=f"of both sides (default: {','.join(_DTYPES)}, or --dtype alone)",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    measuring.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Measures all dtypes and batches."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two libraries share the device
    from vila_jax.bench.peer import compare_sides, released, require_torch, versions
    from vila_jax.bench.results import Results, settings

    measuring.check_places(args)
    _check(args)
    require_torch()
    rows = []
    with Progress(enabled=args.json != "-") as progress:
        for dtype in args.dtypes or ([args.dtype] if args.dtype else _DTYPES):
            with released():
                args.dtype = dtype
                subject = measuring.load_subject(args, progress)
                for case in measuring.make_cases(args, subject):
                    rows += compare_sides(
                        subject,
                        case,
                        args.model,
                        repeats=args.repeats,
                        compiled=not args.no_compile,
                        on_step=progress.phase,
                    )
                del subject
    made = settings(measuring.command_of(args))
    measuring.write(args, Results(made | {"versions": made["versions"] | versions()}, rows))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Whether there is a step to time, and the dtypes are known."""
    if args.new_tokens < 2:
        raise VilaError("there is no step after the first token", where="--new-tokens", fix="Ask for 2 at least.")
    for dtype in args.dtypes or ():
        if dtype not in _DTYPES:
            raise VilaError(f"got {dtype!r}", where="--dtypes", fix=f"Choose among {', '.join(_DTYPES)}.")
