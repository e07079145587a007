"""The training loop: stages one after another, checkpointed, resumable at any step."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from flax import nnx
from rich.console import Console

from train.config import Run, Stage
from train.heads import LabelHeads
from train.optim import optimizer
from train.scene_batches import SceneFormat, batches
from train.step import Trainee, make_step
from train.tokenizer import build_tokenizer, token_settings
from vila_jax.errors import CheckpointError
from vila_jax.hf.config import parse_config
from vila_jax.nn.vlm import VLM
from vila_jax.scenes import NUM_COLORS, NUM_CONTENTS
from vila_jax.vision.preprocess import PreprocessConfig, Preprocessor

console = Console(stderr=True, markup=False, highlight=False)

Params = dict[str, Any]
"""Weights as a plain nested dict: what is checkpointed, differentiated and merged into modules."""


@dataclasses.dataclass
class Trainer:
    """Runs the stages of a `Run` in `folder`; each stage has its own checkpoints and starts from the one before."""

    run: Run
    folder: Path

    def __post_init__(self):
        self.form = scene_format(self.run)

    def train(self) -> Params:
        """Trains whatever is not finished yet and returns the final parameters."""
        graphdef, state = nnx.split(new_trainee(self.run))
        params = nnx.to_pure_dict(state)
        for stage in self.run.stages:
            params = self._stage(stage, graphdef, params)
        return params

    def restore(self) -> tuple[str, int, Params]:
        """The newest checkpoint, whether training is finished or not: its stage, its step and the parameters.

        Raises:
          CheckpointError: there is none.
        """
        params = nnx.to_pure_dict(nnx.state(new_trainee(self.run)))
        for stage in reversed(self.run.stages):
            if self._checkpoints(stage).is_dir():
                with self._checkpointer(stage) as checkpointer:
                    if checkpointer.latest:
                        restored = checkpointer.load(checkpointer.latest, _abstract(_initial(stage, params)))
                        return stage.name, checkpointer.latest.step, restored["params"]
        raise CheckpointError("there is no checkpoint of this run", where=str(self.folder), fix="Train it first.")

    def _checkpoints(self, stage: Stage) -> Path:
        return (self.folder / "checkpoints" / stage.name).absolute()

    def _checkpointer(self, stage: Stage) -> ocp.training.Checkpointer:
        keep = ocp.training.preservation_policies.LatestN(2)
        return ocp.training.Checkpointer(self._checkpoints(stage), preservation_policy=keep)

    def _stage(self, stage: Stage, graphdef: nnx.GraphDef, params: Params) -> Params:
        state = _initial(stage, params)
        with self._checkpointer(stage) as checkpointer:
            latest = checkpointer.latest
            done = latest.step if latest else 0
            if latest:
                state = checkpointer.load(latest, _abstract(state))
                console.print(f"[{stage.name}] resumed at step {done}")
            step_fn = make_step(graphdef, stage, optimizer(stage))
            state = self._steps(stage, step_fn, state, done, checkpointer)
        return state["params"]

    def _steps(self, stage: Stage, step_fn: Any, state: Any, done: int, checkpointer: Any) -> Any:
        params, opt, started = state["params"], state["opt"], time.perf_counter()
        for step, batch in enumerate(batches(stage, self.form, self.run.seed, start=done), start=done + 1):
            params, opt, metrics = step_fn(params, opt, batch)
            if step % self.run.log_every == 0 or step == stage.steps:
                self._log(stage, step, metrics, (time.perf_counter() - started) / (step - done))
            if step % self.run.save_every == 0 or step == stage.steps:
                checkpointer.save(step, {"params": params, "opt": opt})
        return {"params": params, "opt": opt}

    def _log(self, stage: Stage, step: int, metrics: dict[str, jax.Array], seconds: float) -> None:
        values = {name: round(float(np.asarray(value)), 5) for name, value in metrics.items()}
        row = {"stage": stage.name, "step": step, "seconds_per_step": round(seconds, 4), **values}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        console.print(f"[{stage.name}] {step}/{stage.steps}  {text}  {seconds:.2f} s/step", soft_wrap=True)


def _initial(stage: Stage, params: Params) -> dict[str, Any]:
    """What a stage starts from, and what its checkpoints hold."""
    return {"params": params, "opt": optimizer(stage).init(params)}


def _abstract(state: Any) -> Any:
    """Shapes, dtypes and places of arrays, for orbax to restore into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def scene_format(run: Run) -> SceneFormat:
    """How the scenes of a run become arrays."""
    config = PreprocessConfig.from_hf(run.preprocessor, model_type=run.model["model_type"])
    return SceneFormat(Preprocessor(config, run.model["vision_config"]["patch_size"]), build_tokenizer())


def new_trainee(run: Run) -> Trainee:
    """A freshly initialised model with its label heads."""
    config = parse_config(hf_config(run)).vlm
    rngs = nnx.Rngs(run.seed)
    heads = LabelHeads(config.vision.hidden_size, NUM_COLORS * NUM_CONTENTS, rngs=rngs)
    return Trainee(VLM(config, rngs=rngs), heads)


def hf_config(run: Run) -> dict[str, Any]:
    """The run's `config.json`, with what the tokenizer decides."""
    ids = token_settings()
    text = run.model["text_config"] | {
        k: ids[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    }
    return run.model | {"image_token_index": ids["image_token_index"], "text_config": text}
