"""Where the rows of a run go."""

import importlib.util
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.metrics import history
from train.metrics.display import display
from train.metrics.events import EventFile
from train.metrics.rows import Row, Writer
from vila_jax.errors import ConfigError


class Jsonl(Writer):
    """`metrics.jsonl`, see `train/metrics/history.py`; every line is in the file once it is written.

    Args:
      path: the file; what it holds beyond `done` is cut off.
      done: steps that the run already has, and goes on from.
    """

    def __init__(self, path: Path, done: int = 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lost = history.cut(path, done)
        self._file = path.open("a")

    def write(self, row: Row) -> None:
        self._append({"step": row.step} | {name: _number(value) for name, value in row.values.items()})

    def note(self, step: int, text: str) -> None:
        self._append({"step": step, "note": text})

    def close(self) -> None:
        self._file.close()

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def _number(value: float) -> float | int | None:
    """What JSON can hold: nine digits give a float32 back."""
    if not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.9g}")


class TensorBoard(Writer):
    """Event files in a folder that TensorBoard shows.

    Args:
      folder: of the files; each process that works on a run adds one.
      done: steps that the run already has. TensorBoard forgets those beyond that an older file holds.
    """

    def __init__(self, folder: Path, done: int = 0):
        self._file = EventFile(folder, restart=done + 1 if done else None)

    def write(self, row: Row) -> None:
        self._file.scalars(row.step, row.values)

    def close(self) -> None:
        self._file.close()


class Wandb(Writer):
    """Weights & Biases, if it is installed. Without a network it writes to its own folder, to be synchronised later.

    Args:
      name: of the run, which is also what it is resumed by.
      folder: where it may write.
      config: of the run.
      project: that the run belongs to.

    Raises:
      ConfigError: `wandb` is not installed.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any], project: str = "vila-jax"):
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError("wandb is not installed", where="--wandb", fix="Run: pip install 'vila-jax[wandb]'")
        import wandb

        options: dict[str, Any] = {"project": project, "name": name, "config": dict(config), "dir": str(folder)}
        options |= {"id": name.replace("/", "-"), "resume": "allow"}
        try:
            self._run = wandb.init(**options)
        except wandb.errors.Error as error:  # no key, no network: never a reason not to train
            warnings.warn(f"wandb is offline: {error}", stacklevel=2)
            self._run = wandb.init(**options, mode="offline")

    def write(self, row: Row) -> None:
        self._run.log(dict(row.values), step=row.step)

    def close(self) -> None:
        self._run.finish()


def open_writers(
    folder: Path,
    *,
    name: str,
    steps: int,
    done: int = 0,
    config: Mapping[str, Any] | None = None,
    wandb: bool = False,
) -> list[Writer]:
    """All writers of a run: console, `metrics.jsonl`, TensorBoard, and Weights & Biases if wanted.

    Args:
      folder: of the run.
      name: of the run.
      steps: of the whole run.
      done: that it already has, and goes on from.
      config: of the run, which Weights & Biases shows.

    Raises:
      ConfigError: `wandb` is wanted and not installed, or `metrics.jsonl` is something else.
    """
    writers = [Jsonl(folder / history.FILE, done), TensorBoard(folder / "tensorboard", done)]
    online = [Wandb(name, folder, config or {})] if wandb else []
    return [*writers, *online, display(name, steps, done)]
