"""A stage compiled ahead of time, for a mesh that need not be there: does it compile, and what does it need?

    python -m train lower vila_7b/sft --model vila-7b --devices 64 --mesh fsdp=16,tensor=4

No weight is made: the model is abstract, and the devices are the host's, by number. So the program is XLA's for CPUs,
whose temporary memory is an upper bound of a kind: products in bfloat16 are done in float32 there.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from train import lora
from train.compile import abstract_state, make_step, with_shardings
from train.memory import GIB, MemoryPlan, check_memory, plan_memory
from train.objective import answer_sums
from train.optim import make_optimizer
from train.pages import load
from train.recipe import Stage
from train.sharding import Placement, executions
from train.update import Rules
from train.weights import Flat, Structure, split
from vila_jax.bench.presets import preset
from vila_jax.dist import make_mesh, parse_axes
from vila_jax.hf.config import parse_config
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import abstract
from vila_jax.nn.vlm import VLM


@dataclasses.dataclass(frozen=True)
class Ahead:
    """A stage, ready to be compiled.

    Attributes:
      lowered: the step.
      plan: what it is thought to need.
    """

    lowered: jax.stages.Lowered
    plan: MemoryPlan


def lower_stage(stage: Stage, config: VLMConfig, mesh: Mesh) -> Ahead:
    """Lowers the step of a stage that answers are learned in.

    Args:
      config: of the model that the stage begins with.
      mesh: may be of devices that are not used.
    """
    compute = stage.compute
    model = _abstract_model(config, stage.lora)
    structure, weights = Structure.of(model, stacked=compute.scan, **executions(compute.remat, mesh))
    placement = Placement.of(structure, weights, mesh)
    trained, frozen = split(weights, stage.learning_rate, () if stage.lora is None else stage.lora.groups)
    trained, frozen = _in_dtype(trained, "float32"), _in_dtype(frozen, compute.dtype)
    optimizer = make_optimizer(stage.optimizer, stage.learning_rate, stage.steps or 1000)
    rules = Rules(stage.safety.spike, stage.average)

    def objective(trained: Flat, frozen: Flat, part: Any) -> Any:
        own = structure.model(trained | frozen, compute.dtype)
        return answer_sums(own, part, chunk=compute.chunk * placement.token_shares)

    state = abstract_state(trained, optimizer, rules, placement)
    batch = abstract_batch(stage, config)
    step = make_step(objective, optimizer, rules, trained, placement)
    lowered = step.lower(  # type: ignore[attr-defined]
        state,
        with_shardings(frozen, placement.flat(frozen)),
        with_shardings(batch, placement.batch(batch)),
    )
    return Ahead(lowered, plan_memory(config, compute, state, frozen, batch, placement))


def abstract_batch(stage: Stage, config: VLMConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """What a step of the stage sees, `[A, B, …]`."""
    parts, side = stage.rows.parts, config.vision.image_size
    rows = stage.rows.rows // parts
    ids = jax.ShapeDtypeStruct((parts, rows, stage.rows.tokens), jnp.int32)
    batch = dict.fromkeys(("token_ids", "targets", "source", "segments", "positions"), ids)
    batch["pixels"] = jax.ShapeDtypeStruct((parts, rows, stage.rows.tiles, 3, side, side), jnp.float32)
    return batch


def _abstract_model(config: VLMConfig, additions: lora.Lora | None) -> VLM:
    def build(rngs: nnx.Rngs) -> VLM:
        model = VLM(config, rngs=rngs)
        if additions is not None:
            lora.add(model, additions, rngs=rngs)
        return model

    return nnx.merge(*abstract(build))


def _in_dtype(weights: Flat, dtype: str) -> dict[str, Any]:
    return {name: jax.ShapeDtypeStruct(value.shape, jnp.dtype(dtype)) for name, value in weights.items()}


def main(argv: list[str]) -> None:
    """Lowers and compiles a stage, and says what a device needs.

    Raises:
      VilaError: page, model or mesh do not fit, or the plan needs more than a device has.
    """
    parser = argparse.ArgumentParser(prog="python -m train lower", description=__doc__)
    parser.add_argument("config", help="page of a recipe; `--KEY VALUE` changes it, as for `python -m train`")
    parser.add_argument("--model", required=True, help="config.json of a model of that anatomy, or name of a preset")
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--mesh", default="fsdp=-1", help="sizes of its axes: data, fsdp, tensor, sequence")
    parser.add_argument("--memory-gib", type=float, help="of a device; more is refused")
    args, words = parser.parse_known_args(argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    stage = load(args.config, words)
    ahead = lower_stage(stage, _config(args.model), make_mesh(parse_axes(args.mesh)))
    print(f"{stage.name} on {args.devices} devices, {args.mesh}; for each device:\n{ahead.plan.table()}", flush=True)
    check_memory(ahead.plan, None if args.memory_gib is None else int(args.memory_gib * GIB))
    begin = time.perf_counter()
    found = ahead.lowered.compile().memory_analysis()
    assert found is not None  # XLA's compiler for CPUs tells
    print(f"compiled in {time.perf_counter() - begin:.0f} s")
    print(f"{'arguments':<34}{found.argument_size_in_bytes / GIB:10.3f} GiB")
    print(f"{'temporary (CPU)':<34}{found.temp_size_in_bytes / GIB:10.3f} GiB")


def _config(model: str) -> VLMConfig:
    path = Path(model)
    return parse_config(json.loads(path.read_text())).vlm if path.is_file() else preset(model).vlm
