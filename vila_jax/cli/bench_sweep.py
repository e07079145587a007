"""Measures all combinations of batch and budget, and draws them: time to the first token, and tokens per second.

The folder --out gets sweep.md (the tables), sweep.json and sweep.png. A combination that does not fit is a row that
says why.
"""

import argparse
import pathlib

from vila_jax.cli import arguments, measuring, terminal
from vila_jax.cli.bench_stages import measure
from vila_jax.cli.progress import Progress
from vila_jax.errors import VilaError

SUMMARY = "batch x budget: table and plots of prefill, decode and whole answers"

_BENCHES = ("prefill", "decode", "generate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax bench sweep`."""
    measuring.add_model(parser)
    measuring.add_variants(parser)
    measuring.add_cases(parser, "1,8,32", "full,hired:0.4,hired:0.2,hired:0.1")
    parser.add_argument(
        "--benches",
        metavar="B,..",
        type=arguments.listed,
        default=",".join(_BENCHES),
        help=f"of {', '.join(_BENCHES)} (default: all)",
    )
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, required=True, help="folder of the report")
    measuring.add_output(parser)
    measuring.add_rates(parser)


def run(args: argparse.Namespace) -> int:
    """Measures and writes."""
    from vila_jax.bench.budgets.chart import require_matplotlib
    from vila_jax.bench.sweep_chart import draw_sweep
    from vila_jax.cli.bench_tables import page

    _check(args)
    require_matplotlib()
    with Progress(enabled=args.json != "-") as progress:
        results = measure(args, args.benches, progress)
    results.write(args.out / "sweep.json")
    draw_sweep(results, args.out / "sweep.png")
    (args.out / "sweep.md").write_text(page(results, ["sweep.png"]), encoding="utf-8")
    measuring.write(args, results)
    if args.json != "-":
        terminal.stdout().print(f"wrote {terminal.plain(str(args.out))}/sweep.md", soft_wrap=True)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Whether what is asked for exists, and files can be written."""
    measuring.check_places(args)
    for name in args.benches:
        if name not in _BENCHES:
            fix = f"There are {', '.join(_BENCHES)}."
            raise VilaError(f"there is no bench {name!r} to sweep", where="--benches", fix=fix)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VilaError(f"it cannot be made: {error.strerror or error}", where=f"--out {args.out}") from None
