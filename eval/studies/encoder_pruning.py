"""The study `encoder_pruning`: tokens of small L2 norm leave a transformer encoder layer by layer."""

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

from eval.studies.encoder_report import FORMS, TIMED_AS, Row, draw_chart, tables
from eval.studies.measure import Timing, bootstrap, paired, time_side_by_side, xla_flops
from eval.studies.output import Journal, command, publish
from eval.studies.pruned_encoder import (
    PrunedEncoder,
    Rule,
    Schedule,
    Shape,
    Threshold,
    calibrate,
    encoder_flops,
    geometric,
    kept,
)
from eval.studies.something_red import Examples, draw, mirrored
from eval.studies.training import Split, epochs, fit, over_batches
from vila_jax.cli.cache import enable_compile_cache

SUMMARY = "layer-wise pruning by L2 norm in a transformer encoder: threshold and static schedule against no pruning"

_BATCH = 64
_AT_ONCE = 250  # examples, outside of training; divides the numbers below, so that one program does


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the results.

    Attributes:
      ratio: tokens that go on after a block, by those that entered it.
      rounds: of the measurement of time.
    """

    shape: Shape
    train: int = 4000
    test: int = 1000
    steps: int = 300
    learning_rate: float = 3e-3
    ratio: float = 0.65
    seeds: int = 3
    rounds: int = 30


_FULL = Settings(Shape())
_QUICK = Settings(Shape(patch=24, width=16, heads=2, layers=3), train=64, test=32, steps=4, rounds=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This study has no arguments of its own."""


def run(args: argparse.Namespace) -> None:
    """Trains every form with every seed, measures, and writes the files."""
    enable_compile_cache()
    settings = dataclasses.replace(_QUICK if args.quick else _FULL, seeds=args.seeds)
    journal = Journal(args.out / f"{args.study}.partial.json", dataclasses.asdict(settings))
    train, test = draw(settings.train, "train"), draw(settings.test, "test")
    runs = []
    for seed in range(settings.seeds):
        right: dict[str, Any] = {}
        for kind in ("baseline", "schedule", "random"):
            right |= journal.once(f"{kind}, seed {seed}", functools.partial(_run, settings, kind, seed, train, test))
        runs.append(right)
    times = journal.once("times", functools.partial(_times, settings, test))
    rows = _rows(settings, runs, times)
    made_by = command(args)
    note = f"{settings.test:,} held-out scenes, {settings.seeds} seeds. {made_by}"
    draw_chart(rows, args.out / f"{args.study}.png", note=note)
    publish(args, journal, made_by, settings, {"rows": [row.to_json() for row in rows]}, tables(rows))


def schedule(settings: Settings, kind: str) -> Schedule | None:
    """The rule under which a kind of model is trained."""
    counts = geometric(settings.shape, settings.ratio)
    return {"baseline": None, "schedule": Schedule(counts), "random": Schedule(counts, by="random")}[kind]


def _run(settings: Settings, kind: str, seed: int, train: Examples, test: Examples) -> dict[str, Any]:
    """Trains one model; which test answers are right under its own rule and under those that it was not trained for."""
    own = schedule(settings, kind)
    model = _train(settings, own, seed, train)
    forms: dict[str, Rule] = {kind: own}
    counts = geometric(settings.shape, settings.ratio)
    if kind == "baseline":
        forms["untrained schedule"] = Schedule(counts)
    if kind == "schedule":
        forms["threshold"] = calibrate(model, train.pictures, counts)
    return {form: _test(model, rule, test) for form, rule in forms.items()}


def _train(settings: Settings, rule: Rule, seed: int, train: Examples) -> Split:
    def loss(model: PrunedEncoder, batch: Examples, key: Array) -> Float[Array, ""]:
        logits, _ = model(jnp.asarray(batch.pictures), rule, key)
        return optax.sigmoid_binary_cross_entropy(logits, batch.answers.astype(logits.dtype)).mean()

    def batches() -> Iterator[Examples]:
        rng = np.random.default_rng(seed)
        for chosen in epochs(len(train.answers), min(_BATCH, len(train.answers)), seed):
            yield Examples(mirrored(rng, train.pictures[chosen]), train.answers[chosen])

    model = PrunedEncoder(settings.shape, rngs=nnx.Rngs(seed))
    return fit(model, loss, batches(), steps=settings.steps, learning_rate=settings.learning_rate)


def _test(model: Split, rule: Rule, test: Examples) -> dict[str, Any]:
    """Which answers are right, and the mean number of tokens after each block but the last."""
    graph, state = model
    key = jax.random.key(1)

    def forward(pictures: Array, state: nnx.State, rule: Rule) -> Any:
        return nnx.merge(graph, state)(pictures, rule, key)

    one = jax.jit(forward, static_argnums=() if isinstance(rule, Threshold) else (2,))
    logits, norms = over_batches(lambda own: one(own, state, rule), _AT_ONCE, test.pictures)
    if isinstance(rule, Threshold):
        tokens = kept(rule, norms).mean(axis=0).tolist()
    else:
        tokens = list(rule.counts) if rule is not None else [norm.shape[1] for norm in norms]
    return {"right": ((logits > 0) == test.answers).astype(int).tolist(), "tokens": tokens}


def _times(settings: Settings, test: Examples) -> dict[str, Any]:
    """Seconds of a batch under each form, side by side, and XLA's count of operations for one picture.

    Neither depends on the weights, which are therefore those of the start; nor on the levels, since shapes are static.
    """
    graph, state = nnx.split(PrunedEncoder(settings.shape, rngs=nnx.Rngs(0)))
    counts = geometric(settings.shape, settings.ratio)
    levels = Threshold(jnp.full(len(counts), 1.0))
    pictures = jnp.asarray(test.pictures[:_BATCH])
    forms: dict[str, Any] = {
        "baseline": lambda state, pictures: nnx.merge(graph, state)(pictures, None)[0],
        "threshold": lambda state, pictures: nnx.merge(graph, state)(pictures, levels)[0],
        "schedule": lambda state, pictures: nnx.merge(graph, state)(pictures, Schedule(counts))[0],
    }
    calls = {name: functools.partial(jax.jit(form), state, pictures) for name, form in forms.items()}
    timings = time_side_by_side(calls, settings.rounds)
    return {
        "batch": len(pictures),
        "seconds": {name: timing.to_json() for name, timing in timings.items()},
        "xla_flops": {name: xla_flops(form, state, pictures) / len(pictures) for name, form in forms.items()},
    }


def _rows(settings: Settings, runs: Sequence[Mapping[str, Any]], times: Mapping[str, Any]) -> list[Row]:
    """One row for each form, the baseline first."""

    def right(form: str) -> np.ndarray:
        return np.array([run[form]["right"] for run in runs], np.float64)

    rows = []
    for form in FORMS:
        tokens = np.mean([run[form]["tokens"] for run in runs], axis=0)
        timed = TIMED_AS[form]
        rows.append(
            Row(
                form=form,
                tokens=tuple(tokens.tolist()),
                flops=encoder_flops(settings.shape, tokens.tolist()),
                xla_flops=times["xla_flops"][timed],
                time=Timing(tuple(times["seconds"][timed])),
                accuracy=bootstrap(right(form)),
                difference=paired(right(form), right("baseline")),
            )
        )
    return rows
