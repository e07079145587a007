"""A small run in a process of its own, for the crash test.

    python -m tests.train.crash_driver FOLDER STEPS DATA,FSDP,TENSOR PROGRAMS

It has all that a real one has: packed batches made ahead on threads from records some of which are bad, a sharded state
with AdamW and an average, a donated step, checkpoints written beside it. It goes on from whatever lies in FOLDER, prints
what it has done line by line, so that the test knows when to strike, and leaves `done.npz` and `done.json` at the end.
PROGRAMS is a cache of compiled programs.
"""

import json
import math
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tests.train.data.test_position import stream
from train.checkpoints import Checkpoints, abstract_like, flattened
from train.data.labels import IGNORED
from train.losses import Sums
from train.recipe import Safety
from train.stopping import Stopping
from train.update import Rules, TrainState, initial_state, update
from vila_jax.dist import make_mesh

VOCAB, WIDTH, LAYERS = 64, 32, 2
ROWS, RECORDS = 4, 3000
PAGE = {"name": "crash", "rows": {"rows": ROWS}, "learning_rate": {"decoder": 1e-2}}
SAFETY = Safety(save_every=2, keep_last=2, keep_every=50)
OPTIMIZER, RULES = optax.adamw(1e-2, weight_decay=0.1), Rules(average=0.9)


def objective(trained, frozen, batch) -> Sums:
    """The next token by a small residual network without attention."""
    embedding = trained["decoder.embedding"]
    hidden = jnp.take(embedding, batch["token_ids"] % VOCAB, axis=0)
    for weight in trained["decoder.layers.*.w"]:
        hidden = hidden + jnp.tanh(hidden @ weight)
    scores = hidden @ embedding.T + frozen["projector.bias"][None, None]
    known = batch["targets"] != IGNORED
    targets = jnp.where(known, batch["targets"] % VOCAB, 0)
    each = optax.losses.softmax_cross_entropy_with_integer_labels(scores, targets)
    return Sums(jnp.sum(each * known), jnp.sum(known & (scores.argmax(-1) == targets)), jnp.sum(known))


@jax.jit
def beginning() -> tuple[TrainState, dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(0), 3)
    trained = {
        "decoder.embedding": jax.random.normal(keys[0], (VOCAB, WIDTH)),
        "decoder.layers.*.w": jax.random.normal(keys[1], (LAYERS, WIDTH, WIDTH)) / WIDTH,
    }
    return initial_state(trained, OPTIMIZER, RULES), {"projector.bias": jax.random.normal(keys[2], (VOCAB,))}


def main(folder: Path, steps: int, axes: dict[str, int]) -> int:
    """Runs until all steps are done, or it is asked to stop."""
    mesh = make_mesh(axes)

    def place(x):
        split = PartitionSpec(*[None] * (x.ndim - 2), "fsdp", "tensor") if x.ndim > 1 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, split))

    def step_of(state, frozen, batch):
        return update(state, frozen, batch, objective=objective, optimizer=OPTIMIZER, rules=RULES)

    said("begun", 0)
    state, frozen = jax.tree.map(place, beginning())
    rows = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    places = jax.tree.map(lambda x: x.sharding, state)
    step_fn = jax.jit(step_of, donate_argnums=0, out_shardings=(places, None))
    batches = stream(prefetch=2, threads=2, records=RECORDS, rows=ROWS)
    with Stopping() as stopping, Checkpoints(folder / "checkpoints", SAFETY, page=PAGE, seed=0) as checkpoints:
        kept = checkpoints.frozen(abstract_like(frozen))
        if kept is None:
            checkpoints.keep_frozen(frozen)
        restored = checkpoints.restore(abstract_like(state))
        if restored is not None:
            state, frozen = restored.state, kept or frozen
            batches.restore(restored.position)
        done = restored.step if restored else 0
        said("restored", done)
        for step in range(done + 1, steps + 1):
            batch = {name: jax.device_put(x[None], rows) for name, x in next(batches).items() if name in NEEDED}
            state, metrics = step_fn(state, frozen, batch)
            stop = stopping.asked(step)
            if stop or checkpoints.due(step):
                checkpoints.save(step, state, batches.state(), {"loss": metrics["loss"]})
            said("step", step)
            if stop:
                checkpoints.wait()
                said("stopped", step)
                break
        else:
            np.savez(folder / "done.npz", **{name.replace("/", ":"): x for name, x in flattened(state).items()})
            (folder / "done.json").write_text(json.dumps(batches.state()))
    return stopping.exit_code


NEEDED = ("token_ids", "targets")


def said(what: str, step: int) -> None:
    print(what, step, flush=True)


if __name__ == "__main__":
    sizes = [int(size) for size in sys.argv[3].split(",")]
    jax.config.update("jax_num_cpu_devices", math.prod(sizes))
    jax.config.update("jax_compilation_cache_dir", sys.argv[4])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    named = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), named))
