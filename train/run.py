"""One run: a stage from its page to its exported model, by one road from one CPU to a pod.

open       weights, tokenizer, preprocessing, structure, budgets           train/start.py, train/weights.py
plan       what a device has to hold; refused where it cannot              train/memory.py
begin      the state, new or of the newest checkpoint                      train/checkpoints.py
loop       batch, step, meter, checkpoint, to the end or a signal          train/data, train/compile.py
finish     the exported model, which the next stage starts from
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from train import pages
from train.checkpoints import Checkpoints
from train.compile import Step, abstract_state, make_state, make_step, on_one_device, with_shardings
from train.data.mixture import parse_mixture
from train.data.samples import Layout, make_layouts
from train.data.sources import open_source
from train.data.stream import Batches, estimate_steps, open_batches
from train.flops import stage_flops
from train.lower import abstract_batch
from train.memory import check_memory, device_memory, plan_memory
from train.metrics import history, plot
from train.metrics.counts import count
from train.metrics.meter import Meter
from train.metrics.rows import Writer
from train.metrics.trace import Trace
from train.metrics.writers import open_writers
from train.objective import make_objectives
from train.optim import learning_rates, make_optimizer
from train.recipe import Stage
from train.runs import CHECKPOINTS, CONFIG, EXPORT, FINISHED
from train.scenes.heads import initial_heads
from train.scenes.labelled import with_labels
from train.sharding import Placement, executions, in_parts
from train.start import Origin, open_origin, write_files
from train.stopping import Stopping
from train.update import Rules, TrainState
from train.weights import Flat, Structure, split
from vila_jax.bench.machine import peak
from vila_jax.dist import make_mesh
from vila_jax.errors import TrainingDiverged

console = Console(stderr=True, markup=False, highlight=False)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run happens; says nothing about what is learned.

    Attributes:
      runs: folder of all runs.
      data: folder of the prepared data sets.
      mesh: size of every mesh axis, see `vila_jax.dist.mesh`; None for one device.
      log_every: steps from one row of metrics to the next.
      memory_gib: of a device, where it does not tell itself.
      profile: `FROM:TO`, steps of which a trace is written.
      wandb: whether rows go to Weights & Biases too.
    """

    runs: Path
    data: Path = Path("data")
    mesh: Mapping[str, int] | None = None
    log_every: int = 10
    memory_gib: float | None = None
    profile: str | None = None
    wandb: bool = False


@dataclasses.dataclass(frozen=True)
class Opened:
    """A stage whose parts are all there; no weight is read and nothing is compiled yet.

    Attributes:
      stage: with its number of steps.
      trained, frozen: weights that are trained and others, abstract.
      programs: the step under each of the budgets.
    """

    stage: Stage
    steps: int
    origin: Origin
    structure: Structure
    placement: Placement | None
    layouts: list[Layout]
    sources: Mapping[str, Any]
    trained: Flat
    frozen: Flat
    optimizer: optax.GradientTransformation
    rules: Rules
    programs: list[Step]

    def put(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """A batch of this host as the step wants it: in parts, and on the mesh."""
        parts = self.stage.rows.parts
        return in_parts(batch, parts) if self.placement is None else self.placement.put_batch(batch, parts)

    def load(self) -> tuple[Flat, Flat]:
        """The weights that the stage starts from, those that it trains and the others."""
        weights = self.structure.stack(self.origin.load()) | _heads(self.stage, self.origin)
        if self.placement is not None:
            weights = self.placement.put(weights, self.placement.flat(weights))
        return {name: weights[name] for name in self.trained}, {name: weights[name] for name in self.frozen}


@dataclasses.dataclass(frozen=True)
class Begun:
    """A run at the step that it goes on behind.

    Attributes:
      damaged: steps whose checkpoints were passed over, as they could not be read.
    """

    state: TrainState
    frozen: Flat
    batches: Batches
    done: int
    damaged: tuple[int, ...] = ()


def train(stage: Stage, place: Place, page: Stage | None = None) -> int:
    """Carries a stage out, or goes on with it; returns the exit code: 0, or that of the signal that stopped it.

    Args:
      page: the stage as its page has it, where something was changed; the changes are shown.

    Raises:
      VilaError: page, data, checkpoint or machine do not fit; before anything is trained.
      DataError: too many samples are bad.
      TrainingDiverged: too many steps in a row could not be taken; what is there is saved.
    """
    folder = place.runs / stage.name
    if (folder / FINISHED).exists():
        _say(f"{stage.name}: finished already, see {folder / EXPORT}")
        return 0
    trace = _trace(place, stage)
    opened = open_stage(stage, place)
    config = pages.to_json(opened.stage)
    _say(pages.show(opened.stage, page or stage))
    _check_memory(opened, place)
    with Checkpoints(folder / CHECKPOINTS, stage.safety, page=json.loads(config), seed=stage.seed) as checkpoints:
        begun = _begin(opened, checkpoints)
        write_files(folder, {CONFIG: config})
        with Stopping() as stopping:
            state, step = _loop(opened, place, begun, checkpoints, stopping, trace)
            checkpoints.wait()
        if step < opened.steps:
            return stopping.exit_code
        _finish(opened, folder, state, begun.frozen)
    return 0


def open_stage(stage: Stage, place: Place) -> Opened:
    """Finds everything that a stage needs; whatever is wrong with it is found here.

    Raises:
      VilaError: page, data or checkpoint do not fit.
    """
    mesh = None if place.mesh is None else make_mesh(place.mesh)
    origin = open_origin(stage, place.runs, mesh=mesh)
    ways = executions(stage.compute.remat, mesh)
    structure, shapes = Structure.of(origin.abstract(), stacked=stage.compute.scan, **ways)
    heads = jax.eval_shape(lambda: _heads(stage, origin))
    shapes |= heads
    placement = None if mesh is None else Placement.of(structure, shapes, mesh)
    trained, frozen = split(shapes, stage.learning_rate, () if stage.lora is None else stage.lora.groups)
    layouts = make_layouts(stage, origin.checkpoint.config, origin.form, origin.style, origin.preprocessor)
    layouts = with_labels(stage, layouts)
    sources = {term.name: open_source(term.name, place.data) for term in parse_mixture(stage.data.mixture)}
    steps = estimate_steps(stage, layouts, sources) if stage.steps is None else stage.steps
    optimizer = make_optimizer(stage.optimizer, stage.learning_rate, steps)
    rules = Rules(stage.safety.spike, stage.average)
    specs, soft = [layout.visual.spec for layout in layouts], origin.soft_targets(stage.time_std)
    shares = 1 if placement is None else placement.token_shares
    objectives = make_objectives(structure, stage, specs, soft, shares)
    return Opened(
        stage=dataclasses.replace(stage, steps=steps),
        steps=steps,
        origin=origin,
        structure=structure,
        placement=placement,
        layouts=layouts,
        sources=sources,
        trained=trained,
        frozen=frozen,
        optimizer=optimizer,
        rules=rules,
        programs=[make_step(objective, optimizer, rules, trained, placement) for objective in objectives],
    )


def _check_memory(opened: Opened, place: Place) -> None:
    """Says what a step needs on a device.

    Raises:
      ConfigError: a device has less.
    """
    state = abstract_state(opened.trained, opened.optimizer, opened.rules, opened.placement)
    batch = abstract_batch(opened.stage, opened.origin.vlm)
    plan = plan_memory(opened.origin.vlm, opened.stage.compute, state, opened.frozen, batch, opened.placement)
    _say(f"memory of a device\n{plan.table()}")
    check_memory(plan, device_memory(place.memory_gib))


def _heads(stage: Stage, origin: Origin) -> Flat:
    """The classifiers of patch labels, where a stage learns from them."""
    return {} if stage.objective == "answers" else initial_heads(origin.vlm.vision.hidden_size, stage.seed)


def _begin(opened: Opened, checkpoints: Checkpoints) -> Begun:
    """The newest checkpoint, or the beginning."""
    placement = opened.placement
    share, shares = (0, 1) if placement is None else placement.host_share()
    batches = open_batches(opened.stage, opened.layouts, opened.sources, host=share, hosts=shares)
    restored = checkpoints.restore(abstract_state(opened.trained, opened.optimizer, opened.rules, placement))
    if restored is None:
        trained, frozen = opened.load()
        checkpoints.keep_frozen(frozen)
        return Begun(make_state(trained, opened.optimizer, opened.rules, placement), frozen, batches, 0)
    _say(f"{opened.stage.name}: goes on behind step {restored.step:,}")
    batches.set_state(restored.position)
    frozen = opened.frozen
    like = on_one_device(frozen) if placement is None else with_shardings(frozen, placement.flat(frozen))
    kept = checkpoints.frozen(like)
    if kept is None:
        _, kept = opened.load()
        checkpoints.keep_frozen(kept)
    return Begun(restored.state, kept, batches, restored.step, restored.damaged)


def _loop(
    opened: Opened, place: Place, begun: Begun, checkpoints: Checkpoints, stopping: Stopping, trace: Trace
) -> tuple[TrainState, int]:
    """Takes the steps that are left; returns the state and the number of steps that are done."""
    state, step, batches = begun.state, begun.done, begun.batches
    with contextlib.closing(batches), contextlib.closing(trace), _meter(opened, place, begun) as meter:
        for damaged in begun.damaged:
            meter.note(step, f"the checkpoint of step {damaged} was damaged; gone on from that of step {step}")
        try:
            while step < opened.steps:
                asked = time.perf_counter()
                budget, batch = next(batches)
                waited, step = time.perf_counter() - asked, step + 1
                trace.before(step)
                state, metrics = opened.programs[budget](state, begun.frozen, opened.put(batch))
                if written := trace.after(step, metrics):
                    meter.note(step, written)
                stops = stopping.asked(step)
                meter.step(step, metrics, count(batch), waited)
                if stops or checkpoints.due(step) or step == opened.steps:
                    meter.flush()
                    checkpoints.save(step, state, batches.get_state(), meter.latest)
                    meter.interrupted()
                if stops:
                    break
        except TrainingDiverged:
            checkpoints.save(step, state, batches.get_state())
            raise
    return state, step


def _trace(place: Place, stage: Stage) -> Trace:
    folder = place.runs / stage.name / "profile"
    return Trace(folder, 0, -1) if place.profile is None else Trace.parse(place.profile, folder)


@contextlib.contextmanager
def _meter(opened: Opened, place: Place, begun: Begun) -> Iterator[Meter]:
    """What watches the loop. When that ends, however it does, what was told is drawn."""
    stage, folder = opened.stage, place.runs / opened.stage.name
    first = jax.process_index() == 0
    writers: list[Writer] = []
    if first:
        page = json.loads(pages.to_json(stage))
        writers = open_writers(
            folder, name=stage.name, steps=opened.steps, done=begun.done, config=page, wandb=place.wandb
        )
    devices = jax.devices() if opened.placement is not None else jax.local_devices()[:1]
    flops = stage_flops(
        opened.origin.vlm, tuple(stage.learning_rate), lora=stage.lora, answers=stage.objective != "labels"
    )
    meter = Meter(
        writers,
        steps=opened.steps,
        every=place.log_every,
        max_skipped=stage.safety.max_skipped,
        learning_rates=lambda step: learning_rates(stage.optimizer, stage.learning_rate, opened.steps, step - 1),
        bad=lambda: begun.batches.bad,
        flops=flops,
        peak=peak(devices, stage.compute.dtype).flops,
        hosts=1 if opened.placement is None else opened.placement.host_share()[1],
    )
    try:
        with meter:
            yield meter
    finally:
        rows = [entry for entry in history.read(folder / history.FILE) if "loss" in entry] if first else []
        if rows:
            plot.draw({stage.name: rows}, folder / plot.FILE)


def _finish(opened: Opened, folder: Path, state: TrainState, frozen: Flat) -> None:
    """Exports what was trained, and says that the run is over."""
    trained = state.trained if state.average is None else state.average
    opened.origin.export({**frozen, **trained}, folder / EXPORT, dtype=opened.stage.export)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_files(folder, {FINISHED: json.dumps({"steps": opened.steps, "finished": now}, indent=2) + "\n"})
    _say(f"{opened.stage.name}: exported to {folder / EXPORT}")


def _say(what: Any) -> None:
    """Tells a person; on several hosts the first one does."""
    if jax.process_index() == 0:
        console.print(what, soft_wrap=isinstance(what, str))  # tables fold themselves
