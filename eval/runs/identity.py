"""Which run this is: all that answers follow from, so that no two runs are mixed; and where and when it took place."""

import collections
import dataclasses
import datetime
import importlib.metadata
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vila_jax
from eval.report import processor
from vila_jax.budgets import Budget
from vila_jax.hf.identity import checkpoint_hash, fingerprint
from vila_jax.model import Model


@dataclasses.dataclass(frozen=True)
class Generation:
    """How answers are generated: greedily.

    Attributes:
      max_new_tokens: the most tokens of an answer, its end included.
      stop: texts that end an answer.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()


def of_model(model: Model) -> dict[str, Any]:
    """What answers follow from on the side of the model; reads all files of the checkpoint once, for their hash."""
    import jax

    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "QUESTION"}]}]
    config = model.preprocessor.config
    quantized = {} if model.quantization is None else {"quantize": str(model.quantization)}
    return quantized | {
        "model": Path(model.checkpoint.name).name if os.path.isdir(model.checkpoint.name) else model.checkpoint.name,
        "checkpoint_sha256": checkpoint_hash(model.checkpoint),
        "dtype": model.engine.planner.dtype,
        "device": jax.devices()[0].device_kind,
        "versions": {"vila_jax": vila_jax.__version__, "jax": jax.__version__},
        "prompt_template": model.form.render(question, model.style, [None]),
        "preprocessing": {"form": type(model.preprocessor).__name__, **dataclasses.asdict(config)},
    }


def header(
    of_model: Mapping[str, Any],
    task: Mapping[str, Any],
    *,
    budget: Budget | None,
    generation: Generation,
    host: tuple[int, int],
) -> dict[str, Any]:
    """The header of a run.

    Args:
      of_model: see above.
      task: what `eval.runs.items.describe` says of the samples.
      budget: as asked for.
      host: this is share i of n.
    """
    return {
        "run_id": fingerprint([dict(of_model), dict(task), str(budget), dataclasses.asdict(generation)])[:16],
        "model": dict(of_model),
        "task": dict(task),
        "budget": None if budget is None else str(budget),
        "generation": {**dataclasses.asdict(generation), "temperature": 0.0},
        "host": list(host),
    }


def session(contents: str) -> dict[str, Any]:
    """When and where this process runs, by which code, over questions with this hash of their contents."""
    import jax

    return {
        "started": _now(),
        "command": f"python -m eval {shlex.join(sys.argv[1:])}",
        "questions_sha256": contents,
        **commit(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", "pillow")},
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "devices": dict(collections.Counter(device.device_kind for device in jax.devices())),
    }


def session_end() -> dict[str, Any]:
    """When this process was done with a run."""
    return {"ended": _now()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def commit() -> dict[str, Any]:
    """The commit of the checkout that this code is in, and whether it was changed since; None where git cannot say."""

    def git(*words: str) -> str | None:
        try:
            place = Path(vila_jax.__file__).parent
            return subprocess.run(["git", "-C", place, *words], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None

    found, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": found and found.strip(), "dirty": None if changes is None else bool(changes)}
