"""A stage compiled ahead of time, for a mesh that need not be there: does it compile, and what does it need?

    python -m train.lower configs/vila_7b/sft.py --model llava-1.5-7b/ --devices 64 --mesh fsdp=16,tensor=4

No weight is made: the model is abstract, and the devices are the host's, by number. So the program is XLA's for CPUs,
whose temporary memory is an upper bound of a kind: products in bfloat16 are done in float32 there.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from train import lora
from train.compile import abstract_state, make_step, with_shardings
from train.memory import MemoryPlan, plan_memory
from train.objective import answer_sums
from train.recipe import Stage
from train.sharding import Placement, executions
from train.update import Rules
from train.weights import Flat, Structure, split
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


def lower_stage(stage: Stage, config: VLMConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> Ahead:
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


def _in_dtype(weights: Flat, dtype: str) -> Flat:
    return {name: jax.ShapeDtypeStruct(value.shape, jnp.dtype(dtype)) for name, value in weights.items()}
