"""The smallest stage that has all that a real one has, and what a run of it leaves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import safetensors.numpy

import configs.nano.model
from tests.nano import TEXT, VISION
from train.metrics import history
from train.recipe import Compute, Data, Optimizer, Rows, Safety, Stage
from train.run import Place

STEPS = 4


def tiny(start: Path | str | None, name: str = "tiny/first", **changes) -> Stage:
    """A stage of a few steps: projector and decoder of a narrow nano learn captions of drawn scenes.

    Args:
      start: what it starts from; None for nothing, which takes longer.
    """
    stage = Stage(
        name,
        {"projector": 1e-2, "decoder": 1e-2},
        Rows(2, tokens=224, tiles=5, bins=2),
        Data("scenes:captions", threads=1),
        steps=STEPS,
        start=None if start is None else str(start),
        new=configs.nano.model.new(VISION, TEXT) if start is None else None,
        optimizer=Optimizer(clip=1.0),
        compute=Compute("float32", remat="none", scan=False, chunk=128),
        safety=Safety(save_every=2),
        export="float32",
    )
    return dataclasses.replace(stage, **changes)


def place(runs: Path, **changes) -> Place:
    """Every step is logged."""
    return dataclasses.replace(Place(runs, log_every=1), **changes)


def rows(run: Path) -> list[dict]:
    """What was logged of the steps of a run."""
    return [entry for entry in history.read(run / history.FILE) if "loss" in entry]


def notes(run: Path) -> list[str]:
    """What was told beside."""
    return [entry["note"] for entry in history.read(run / history.FILE) if "note" in entry]


def losses(run: Path) -> list[float]:
    """Of all steps, each of which is logged once."""
    own = rows(run)
    assert [row["step"] for row in own] == list(range(1, len(own) + 1))
    return [row["loss"] for row in own]


def exported(run: Path) -> dict[str, np.ndarray]:
    """The tensors of an export."""
    return safetensors.numpy.load_file(run / "export" / "model.safetensors")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def checkpointed(run: Path) -> dict[int, dict]:
    """Step -> what its checkpoint says of itself."""
    folders = (run / "checkpoints" / "steps").iterdir()
    return {int(folder.name): json.loads((folder / "about" / "about.json").read_text()) for folder in folders}
