"""`python -m train CONFIG --out FOLDER`: runs the stages of a recipe page, resuming whatever is already there.

The model is then exported in the Hugging Face layout to FOLDER/export. `--export-only` does that with the newest
checkpoint, which may be one of an unfinished run.

`python -m train prepare` makes a data set ready, see `train/prepare.py`; `python -m train scorer --out FOLDER` gives a
finished model a token scorer, see `train/scorer.py`.
"""

import argparse
import runpy
import sys
from pathlib import Path

from train import bench, prepare, scorer
from train.config import Run
from train.export import export
from train.loop import Trainer, console
from train.metrics import plot
from vila_jax.errors import VilaError
from vila_jax.heap import keep_freed_memory

COMMANDS = {"bench": bench.main, "plot": plot.main, "prepare": prepare.main, "scorer": scorer.main}
"""What there is beside training by a page."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command, and returns an exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in COMMANDS:
            COMMANDS[argv[0]](argv[1:])
        else:
            train(argv)
    except VilaError as error:
        console.print(f"error: {error}", soft_wrap=True)
        return error.exit_code
    return 0


def train(argv: list[str]) -> None:
    """Trains and exports."""
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("config", type=Path, help="a page of configs/, e.g. configs/nano.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, metrics and the exported model")
    parser.add_argument("--export-only", action="store_true", help="export the newest checkpoint; train nothing")
    args = parser.parse_args(argv)
    run: Run = runpy.run_path(str(args.config))["RUN"]
    keep_freed_memory()
    trainer = Trainer(run, args.out)
    if args.export_only:
        stage, step, params = trainer.restore()
        console.print(f"{run.name}: step {step} of stage {stage}")
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        console.print(f"{run.name}: {len(run.stages)} stages into {args.out}")
        params = trainer.train()
    export(run, params, args.out / "export")
    console.print(f"{run.name}: exported to {args.out / 'export'}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
