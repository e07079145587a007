"""`python -m train CONFIG --out FOLDER`: runs the stages of a recipe page, resuming whatever is already there."""

import argparse
import runpy
from pathlib import Path

from train.config import Run
from train.loop import Trainer, console


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("config", type=Path, help="a page of configs/, e.g. configs/nano.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, metrics and the exported model")
    args = parser.parse_args()
    run: Run = runpy.run_path(str(args.config))["RUN"]
    args.out.mkdir(parents=True, exist_ok=True)
    console.print(f"{run.name}: {len(run.stages)} stages into {args.out}")
    Trainer(run, args.out).train()


if __name__ == "__main__":
    main()
