"""Compiles a model's programs into the compile cache, so that the first request of each size need not wait.

A bucket is the length that prompts are padded to, visual tokens included; every --bucket is compiled with every
--budget. Programs are kept in JAX's persistent cache, which the other commands use as well. They belong to this version
of JAX, this kind of device and these settings; anything else compiles anew.
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, terminal, units
from vila_jax.cli.loading import load_model
from vila_jax.cli.progress import Progress
from vila_jax.errors import ConfigError

if TYPE_CHECKING:
    from vila_jax.warmup import Warmed

SUMMARY = "compile a model's programs ahead of the first request"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax warmup`."""
    arguments.add_model(parser)
    parser.add_argument(
        "--buckets",
        metavar="N",
        nargs="+",
        type=arguments.whole(1),
        help="prompt lengths, visual tokens included (default: one picture and 32 tokens of text)",
    )
    parser.add_argument(
        "--budget", metavar="SPEC", action="append", default=[], help="visual-token budget; repeat it (default: all)"
    )
    parser.add_argument(
        "--image-size", metavar="HxW", type=arguments.size, help="of the picture (default: a tile); 0x0 for none"
    )
    parser.add_argument("--max-new-tokens", metavar="N", type=arguments.whole(1), default=128, help="default: 128")
    parser.add_argument("--batch", metavar="N", type=arguments.whole(1), default=1, help="prompts at once (default: 1)")
    arguments.add_sampling(parser)
    arguments.add_dtype(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compiles, and says what."""
    from vila_jax.cli.cache import VARIABLE, cache_size, enable_compile_cache
    from vila_jax.infer.sampler import SamplingOptions
    from vila_jax.warmup import warm_up

    folder = enable_compile_cache()
    if folder is None:
        raise ConfigError(
            "there is no compile cache, so that nothing would be kept", where=VARIABLE, fix="Give a folder to write to."
        )
    files, _ = cache_size(folder)
    with Progress(enabled=not args.json) as progress:
        model = load_model(args, progress, wait=False)  # nothing is run, so that nothing waits for weights
        progress.phase("compiling")
        start = time.perf_counter()
        warmed = warm_up(
            model,
            args.buckets,
            budgets=args.budget or [None],
            image_size=args.image_size,
            new_tokens=args.max_new_tokens,
            batch=args.batch,
            sampling=SamplingOptions(args.temperature, args.top_k, args.top_p, args.seed),
        )
        seconds = time.perf_counter() - start
    new = cache_size(folder)[0] - files
    if args.json:
        terminal.print_json({"cache": str(folder), "seconds": seconds, "warmed": [_facts(one) for one in warmed]})
        return 0
    table = terminal.table(None, "budget", "bucket", "cache", "compiled in")
    for one in warmed:
        table.add_row(one.budget or "all tokens", str(one.bucket), str(one.cache), units.seconds(one.compile_time))
    terminal.stdout().print(table)
    terminal.stderr().print(f"{new} files added to {folder} in {units.seconds(seconds)}", style="dim", soft_wrap=True)
    return 0


def _facts(one: "Warmed") -> dict[str, Any]:
    return {"budget": one.budget, "bucket": one.bucket, "cache_length": one.cache, "compile_s": one.compile_time}
