"""The study `channel_pruning`: a small convolutional network that reads digits loses channels and is fine-tuned."""

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from eval.studies.channel_report import Cost, Row, draw_chart, tables
from eval.studies.digit_scans import Scans, load
from eval.studies.measure import Timing, bootstrap, paired, time_side_by_side, xla_flops
from eval.studies.output import Journal, command, publish
from eval.studies.peak_memory import peak_bytes
from eval.studies.small_cnn import Shape, SmallCNN, flops, norms, without_weakest
from eval.studies.training import epochs, fit, over_batches
from vila_jax.cli.cache import enable_compile_cache

SUMMARY = "channels of a small convolutional network, pruned and fine-tuned, against no pruning"

_BATCH, _TIMED, _TESTED = 32, 256, 1000  # pictures at a time
_SMALLER = ("magnitude", "activation", "random", "scratch", "raw")
_SHAPES = {"digits": Shape(8, 1, (32, 64, 64)), "mnist": Shape(28, 2, (16, 32, 32))}
_DATA = {
    "digits": "the 8x8 scans of scikit-learn (1,000 to train with, 797 held out)",
    "mnist": "MNIST through tensorflow-datasets (60,000 to train with, 10,000 held out)",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the results.

    Attributes:
      steps: of training, before anything is pruned.
      tuning_steps: of training after it, for every network, also the one that is not pruned.
      keeps: fractions of the channels.
      rounds: of the measurement of time.
      held: pictures of the batch whose memory is measured.
    """

    data: str
    shape: Shape
    steps: int
    tuning_steps: int
    learning_rate: float = 3e-3
    keeps: tuple[float, ...] = (0.5, 0.25, 0.125)
    seeds: int = 3
    rounds: int = 100
    held: int = 4000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the argument of this study."""
    parser.add_argument(
        "--data",
        choices=("auto", "mnist", "digits"),
        default="auto",
        help="MNIST through tensorflow-datasets, or scikit-learn's digits, which need no network (default: MNIST if it "
        "can be had)",
    )


def run(args: argparse.Namespace) -> None:
    """Trains, prunes and fine-tunes with every seed, measures, and writes the files."""
    enable_compile_cache()
    scans = load(args.data)
    settings = _settings(scans.name, args.seeds, args.quick)
    journal = Journal(args.out / f"{args.study}.partial.json", dataclasses.asdict(settings))
    runs = [journal.once(f"seed {seed}", functools.partial(_run, settings, seed, scans)) for seed in range(args.seeds)]
    costs = journal.once("costs", functools.partial(_costs, settings, scans))
    rows = _rows(settings, runs, costs)
    made_by = command(args, f"--data {scans.name}")
    note = f"{scans.name}: {len(scans.test):,} held-out scans, {settings.seeds} seeds. {made_by}"
    draw_chart(rows, args.out / f"{args.study}.png", note=note)
    sizes = {f"{row.keep:g}": dataclasses.asdict(row.cost) for row in rows}
    results = {"costs": sizes, "rows": [row.to_json() for row in rows]}
    publish(
        args, journal, made_by, settings, results, tables(rows, _DATA[scans.name], timed=_TIMED, held=settings.held)
    )


def _settings(data: str, seeds: int, quick: bool) -> Settings:
    shape = _SHAPES[data]
    if quick:
        return Settings(data, dataclasses.replace(shape, widths=(8, 8, 8)), 4, 2, keeps=(0.5,), seeds=seeds, rounds=2)
    steps = {"digits": 300, "mnist": 3000}[data]
    return Settings(data, shape, steps, steps // 2, seeds=seeds)


def _run(settings: Settings, seed: int, scans: Scans) -> dict[str, list[int]]:
    """With one seed, which held-out scans each form reads right: `form keep` -> 0 or 1 of each."""
    train = functools.partial(_train, settings, scans, seed)
    shape = settings.shape
    trained = train(SmallCNN(shape, rngs=nnx.Rngs(seed)), settings.steps)
    scores = _scores(trained, seed, scans)
    right = {"baseline 1": _right(train(trained, settings.tuning_steps), scans)}
    for keep in settings.keeps:
        small = shape.kept(keep)
        for form, own in scores.items():
            pruned = without_weakest(trained, own, small)
            if form == "magnitude":
                right[f"raw {keep:g}"] = _right(pruned, scans)
            right[f"{form} {keep:g}"] = _right(train(pruned, settings.tuning_steps), scans)
        fresh = train(SmallCNN(small, rngs=nnx.Rngs(seed)), settings.steps)
        right[f"scratch {keep:g}"] = _right(train(fresh, settings.tuning_steps), scans)
    return right


def _scores(model: SmallCNN, seed: int, scans: Scans) -> dict[str, list[np.ndarray]]:
    """What is weak in a trained network, by each criterion."""
    _, means = model.with_means(jnp.asarray(scans.train[:1000]))
    rng = np.random.default_rng(seed)
    return {
        "magnitude": norms(model),
        "activation": [np.asarray(own) for own in means],
        "random": [rng.random(width) for width in model.shape.widths],
    }


def _train(settings: Settings, scans: Scans, seed: int, model: SmallCNN, steps: int) -> SmallCNN:
    """Trains a copy of the network; all networks of a seed see the same pictures in the same order."""

    def loss(model: SmallCNN, batch: tuple[Array, Array], key: Array) -> Float[Array, ""]:
        pictures, digits = batch
        return optax.softmax_cross_entropy_with_integer_labels(model(pictures), digits).mean()

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for chosen in epochs(len(scans.train), _BATCH, seed):
            yield scans.train[chosen], scans.train_digits[chosen]

    graph, state = nnx.split(model)
    copy = nnx.merge(graph, jax.tree.map(jnp.copy, state))  # `fit` takes the memory of what it is given
    return nnx.merge(*fit(copy, loss, batches(), steps=steps, learning_rate=settings.learning_rate))


def _right(model: SmallCNN, scans: Scans) -> list[int]:
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, pictures: nnx.merge(graph, state)(pictures))
    logits = over_batches(functools.partial(forward, state), _TESTED, scans.test)
    return (np.argmax(logits, axis=-1) == scans.test_digits).astype(int).tolist()


def _costs(settings: Settings, scans: Scans) -> dict[str, Any]:
    """What every size costs; that does not depend on the weights, which are those of the start."""
    one, batch = (jnp.asarray(scans.test[:count]) for count in (1, _TIMED))
    calls: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for keep in (1, *settings.keeps):
        shape = settings.shape.kept(keep)
        graph, state = nnx.split(SmallCNN(shape, rngs=nnx.Rngs(0)))

        def forward(state: nnx.State, pictures: Array, graph: nnx.GraphDef = graph) -> Array:
            return nnx.merge(graph, state)(pictures)

        compiled = jax.jit(forward)
        calls |= {f"{keep:g} {len(own)}": functools.partial(compiled, state, own) for own in (one, batch)}
        found[f"{keep:g}"] = {
            "xla_flops": xla_flops(forward, state, one),
            "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
            "peak_bytes": peak_bytes(shape, settings.held, plain=True),
            "default_peak_bytes": peak_bytes(shape, settings.held),
        }
    timings = time_side_by_side(calls, settings.rounds)
    for size, own in found.items():
        own["one"], own["batch"] = (timings[f"{size} {len(pictures)}"].to_json() for pictures in (one, batch))
    return found


def _rows(settings: Settings, runs: Sequence[Mapping[str, Any]], costs: Mapping[str, Any]) -> list[Row]:
    """One row for each form and fraction, the baseline first."""

    def right(key: str) -> np.ndarray:
        return np.array([own[key] for own in runs], np.float64)

    def cost(keep: float) -> Cost:
        own = costs[f"{keep:g}"]
        times = Timing(tuple(own["one"])), Timing(tuple(own["batch"]))
        sizes = own["xla_flops"], own["weight_bytes"], own["peak_bytes"], own["default_peak_bytes"]
        return Cost(flops(settings.shape.kept(keep)), *sizes, *times)

    settings_of = [("baseline", 1), *((form, keep) for form in _SMALLER for keep in settings.keeps)]
    return [
        Row(form, keep, cost(keep), bootstrap(own := right(f"{form} {keep:g}")), paired(own, right("baseline 1")))
        for form, keep in settings_of
    ]
