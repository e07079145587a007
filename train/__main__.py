"""`python -m train CONFIG [--runs FOLDER] [--data FOLDER] [--mesh AXIS=SIZE,…] [KEYS]`: trains by a recipe page.

CONFIG is a page (`configs/vila_7b/align.py`), its name (`vila_7b/align`), or a folder of pages, which are run one after
another (`configs/nano`). Keys of a stage change the page: `--steps 100 --learning-rate.projector 1e-4`; `--help` lists
them. The same command goes on with a run that was interrupted. Exit code 143 says that it should be given again.

    python -m train prepare FORM SOURCE --out FOLDER      a published data set into shards
    python -m train plot RUN [RUN…]                       losses of runs in one picture
    python -m train lower CONFIG --model MODEL            a stage compiled for a mesh that need not be there
    python -m train bench PRESET                          tokens per second and MFU of a step on this machine
    python -m train scorer --out FOLDER                   a token scorer for a finished model
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from train import bench, lower, pages, prepare, scorer
from train.metrics import plot
from vila_jax.dist.mesh import parse_axes
from vila_jax.dist.start import start
from vila_jax.errors import VilaError
from vila_jax.heap import keep_freed_memory

console = Console(stderr=True, markup=False, highlight=False)

COMMANDS = {
    "prepare": prepare.main,
    "plot": plot.main,
    "lower": lower.main,
    "bench": bench.main,
    "scorer": scorer.main,
}
"""What there is beside training by a page."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command, and returns an exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in COMMANDS:
            COMMANDS[argv[0]](argv[1:])
            return 0
        return train(argv)
    except VilaError as error:
        console.print(f"error: {error}", soft_wrap=True)
        return error.exit_code


def train(argv: list[str]) -> int:
    """Runs the stages of a page or a folder, one after another, until one is stopped."""
    parser = _parser()
    args, words = parser.parse_known_args(argv)
    if args.help:
        parser.print_help()
        Console().print(pages.help_of_keys())
        return 0
    if args.config is None:
        parser.error("the following arguments are required: CONFIG")
    stages = pages.load_all(args.config, words)
    keep_freed_memory()
    start(args.coordinator, args.processes, args.process)
    import jax

    from train.run import Place
    from train.run import train as run

    mesh = parse_axes(args.mesh) if args.mesh else {"fsdp": -1} if jax.device_count() > 1 else None
    place = Place(args.runs, args.data, mesh, args.log_every, args.memory_gib, args.profile, args.wandb)
    for stage, page in zip(stages, pages.load_all(args.config), strict=True):
        if code := run(stage, place, page):
            return code
    return 0


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m train", description=__doc__, formatter_class=form, add_help=False, allow_abbrev=False
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG")
    parser.add_argument("--help", "-h", action="store_true", help="this text, and all keys of a stage")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (runs)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the prepared data sets (data)")
    parser.add_argument("--mesh", help="devices of every axis: fsdp=8,tensor=4; by default fsdp takes all")
    parser.add_argument("--log-every", type=int, default=10, help="steps from one line of metrics to the next (10)")
    parser.add_argument("--memory-gib", type=float, help="memory of a device, where it does not tell itself")
    parser.add_argument("--profile", metavar="FROM:TO", help="write a trace of these steps")
    parser.add_argument("--wandb", action="store_true", help="send metrics to Weights & Biases too")
    hosts = parser.add_argument_group("several hosts, where they are not found by themselves")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process")
    hosts.add_argument("--processes", type=int, help="how many there are")
    hosts.add_argument("--process", type=int, help="number of this one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
