"""Measures loading a checkpoint, each time in a new process, beside a plain read of the same files.

Of a preset a checkpoint of random bfloat16 weights is written to a temporary folder first.
"""

import argparse
import os
import pathlib
import tempfile

from vila_jax.cli import measuring
from vila_jax.cli.progress import Progress

SUMMARY = "loading weights, beside a plain read of their files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax bench load`."""
    measuring.add_model(parser)
    measuring.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Measures."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or no memory were left for the other processes
    import jax.numpy as jnp

    from vila_jax.bench.loading import measure_load, write_checkpoint
    from vila_jax.bench.presets import PRESETS, preset_json
    from vila_jax.bench.results import Results, settings
    from vila_jax.hf.checkpoint import open_checkpoint
    from vila_jax.hf.load import default_dtype

    measuring.check_places(args)
    with Progress(enabled=args.json != "-") as progress, tempfile.TemporaryDirectory() as temporary:
        progress.phase("starting JAX")
        dtype = args.dtype or jnp.dtype(default_dtype()).name
        if args.model in PRESETS:
            folder = pathlib.Path(temporary) / "checkpoint"
            progress.phase("writing a checkpoint")
            write_checkpoint(folder, preset_json(args.model))
        else:
            measuring.check_name(args.model)
            folder = pathlib.Path(open_checkpoint(args.model, revision=args.revision, era=args.era).folder)
        progress.phase("loading")
        row = measure_load(pathlib.PurePath(args.model).name, folder, dtype, args.repeats)
        results = Results(settings(measuring.command_of(args)), [row])
    measuring.write(args, results)
    return 0
