"""Measures steps of training, with random weights and random rows; needs a checkout, which `train/` is part of.

PRESET is one of `python -m train bench` (7b-lora, 7b-full, 3b-full, 1.5b-full, 0.3b-full, tiny), or one of the other
benches, whose projector and decoder are then trained whole, with Adafactor.
"""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, measuring
from vila_jax.cli.progress import Progress
from vila_jax.errors import VilaError

if TYPE_CHECKING:
    from vila_jax.bench.machine import Rates
    from vila_jax.bench.results import Row

SUMMARY = "steps of training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax bench train`."""
    parser.add_argument("model", metavar="PRESET", help="see above")
    parser.add_argument("--batch", metavar="N,..", type=arguments.wholes(1), default="1", help="rows (default: 1)")
    parser.add_argument("--samples", metavar="N", type=arguments.whole(1), default=4, help="of a row (default: 4)")
    parser.add_argument("--remat", choices=("none", "minimal", "full", "offload"), default="minimal")
    parser.add_argument("--unrolled", action="store_true", help="no scan over blocks")
    parser.add_argument("--chunk", metavar="N", type=arguments.whole(1), default=1024, help="positions scored at once")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    measuring.add_output(parser)
    measuring.add_rates(parser)


def run(args: argparse.Namespace) -> int:
    """Measures all batches."""
    measuring.check_places(args)
    if pathlib.Path("train", "bench.py").is_file():
        sys.path.insert(0, "")  # the folder of the checkout, which an installed command does not look into
    try:
        from train import bench as steps
    except ModuleNotFoundError as error:
        fix = "Run it from a checkout of the repository, with the extra `train` installed."
        raise VilaError(f"training is not installed here: {error}", where="vila-jax bench train", fix=fix) from error
    from vila_jax.bench.results import Results, settings

    with Progress(enabled=args.json != "-") as progress:
        chosen, rates, rows = steps.find_preset(args.model), measuring.find_rates(args, args.dtype, progress), []
        for batch in args.batch:
            progress.phase(f"{args.model}, {batch} rows")
            how = steps.Run(batch, args.samples, args.repeats, args.remat, not args.unrolled, args.chunk, args.dtype)
            rows.append(_row(args, batch, steps.measured(chosen, how), rates))
    measuring.write(args, Results(settings(measuring.command_of(args), rates), rows))
    return 0


def _row(args: argparse.Namespace, batch: int, found: dict[str, Any], rates: "Rates") -> "Row":
    from vila_jax.bench.results import Row
    from vila_jax.bench.timing import Times

    named = ("model", "dtype", "samples", "remat", "unrolled", "chunk")
    case = {name: getattr(args, name) for name in named} | {"rows": batch}
    if "error" in found:
        return Row("train", case, refused=found["error"])
    times = Times(**found["seconds"])
    floor = found["flops"] / rates.flops
    facts = {
        "flops": found["flops"],
        "floor_seconds": floor,
        "of_flops": floor / times.median,
        "tokens_per_second": found["tokens"] / times.median,
        "parameters": found["parameters"],
        "trained": found["trained"],
        "peak_bytes": found.get("memory/device_peak", found.get("memory/host", 0)),
        "compile_seconds": found["compile_seconds"],
    }
    return Row("train", case, {"step": times}, facts)
