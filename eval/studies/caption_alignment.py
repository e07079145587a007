"""The study `caption_alignment`: of a photo only the patches that a learned scorer likes are aligned with captions."""

import argparse
import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt8

from eval.metrics.retrieval import hits, ranks
from eval.studies.aligner import Aligner, Keep, Shape, contrastive_loss, pair_flops, photo_flops
from eval.studies.caption_report import FORMS, Row, draw_chart, tables
from eval.studies.flickr8k import Corpus, Problems, list_photos, load, split
from eval.studies.measure import Timing, bootstrap, lossyness, paired, time_side_by_side, xla_flops
from eval.studies.output import Journal, command, console, publish
from eval.studies.scene_captions import write_scenes
from eval.studies.training import Split, epochs, fit, optimizer, over_batches, update_step
from eval.studies.words import Vocabulary, vocabulary
from vila_jax.cli.cache import enable_compile_cache

SUMMARY = "patches kept by a learned scorer, aligned with captions by a bilinear form: Flickr8k, or drawn scenes"

_BATCH = 64
_AT_ONCE = 250  # examples, outside of training; divides the numbers below, so that one program does


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the results.

    Attributes:
      train, test: photos; those of Flickr8k as the original split them, of drawn scenes fewer.
      keep: patches of a photo that go on.
      rounds: of the measurement of time.
    """

    data: str
    train: int
    test: int
    steps: int
    shape: Shape
    keep: int
    learning_rate: float = 2e-3
    seeds: int = 3
    rounds: int = 30


_FLICKR = Settings("Flickr8k", train=6000, test=2000, steps=3000, shape=Shape(), keep=16)
_SCENES = dataclasses.replace(_FLICKR, data="drawn scenes", train=3000, test=500, steps=600)
_QUICK = dataclasses.replace(
    _SCENES, train=24, test=8, steps=3, rounds=2, keep=4, shape=Shape(patch=28, width=16, heads=2, after=1)
)


class Data(NamedTuple):
    """Photos with captions as rows of word numbers."""

    corpus: Corpus
    words: Int32[np.ndarray, "C W"]


class Batch(NamedTuple):
    """Photos, and a caption of each."""

    photos: UInt8[Array, "B h w 3"]
    words: Int32[Array, "B W"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the folder of the data set."""
    parser.add_argument(
        "--flickr8k",
        type=Path,
        metavar="DIR",
        help="the data set as it is published, photos and captions (default: scenes drawn in the same form)",
    )


def run(args: argparse.Namespace) -> None:
    """Trains every form with every seed, measures, and writes the files."""
    enable_compile_cache()
    settings = _settings(args)
    journal = Journal(args.out / f"{args.study}.partial.json", dataclasses.asdict(settings))
    corpus, problems = _read(args.flickr8k, settings)
    parts = split(corpus, settings.train, settings.test)
    settings = dataclasses.replace(settings, train=len(parts[0].photos), test=len(parts[1].photos))
    known = vocabulary(parts[0].captions)
    train, test = (Data(part, known.encode(part.captions, settings.shape.words)) for part in parts)
    runs = []
    for seed in range(settings.seeds):
        part = functools.partial(_run, settings, seed, known, train, test)
        runs.append({form: journal.once(f"{form}, seed {seed}", functools.partial(part, form)) for form in FORMS})
    times = journal.once("times", functools.partial(_times, settings, known, train))
    rows = _rows(settings, runs, times)
    made_by = command(args, *(["--flickr8k DIR"] if args.flickr8k else []))
    photos = f"{settings.data}: {settings.train:,} photos to train, {settings.test:,} to test, {settings.seeds} seeds"
    draw_chart(rows, args.out / f"{args.study}.png", note=f"{photos}. {made_by}")
    results = {"left_out": dataclasses.asdict(problems), "rows": [row.to_json() for row in rows]}
    publish(args, journal, made_by, settings, results, f"{photos}; left out: {problems}.\n\n{tables(rows)}")


def _settings(args: argparse.Namespace) -> Settings:
    chosen = _FLICKR if args.flickr8k else _SCENES
    if args.quick:
        chosen = dataclasses.replace(_QUICK, data=chosen.data)
    return dataclasses.replace(chosen, seeds=args.seeds)


def _read(folder: Path | None, settings: Settings) -> tuple[Corpus, Problems]:
    """The data set; without one, scenes that are written to a folder and read from there."""
    if folder is not None:
        corpus, problems = load(list_photos(folder), settings.shape.side)
        console.print(f"left out: {problems}")
        return corpus, problems
    with tempfile.TemporaryDirectory() as drawn:
        write_scenes(Path(drawn), settings.train + settings.test)
        return load(list_photos(Path(drawn)), settings.shape.side)


def _keep(settings: Settings, form: str) -> Keep | None:
    return {"unpruned": None, "learned": Keep(settings.keep), "random": Keep(settings.keep, by="random")}[form]


def _run(settings: Settings, seed: int, known: Vocabulary, train: Data, test: Data, form: str) -> Mapping[str, Any]:
    """Trains one model; of every test photo what is found, by measure."""
    model = Aligner(settings.shape, known.size, rngs=nnx.Rngs(seed))
    keep = _keep(settings, form)
    batches = _batches(train, seed)
    fitted = fit(model, _loss(keep), batches, steps=settings.steps, learning_rate=settings.learning_rate)
    found = hits(ranks(_all_scores(fitted, keep, test), test.corpus.owners), test.corpus.owners)
    return {name: own.tolist() for name, own in found.items()}


def _batches(data: Data, seed: int) -> Iterator[Batch]:
    """Photos in a new order in every epoch, each with one of its captions, drawn anew."""
    rng = np.random.default_rng(seed)
    own = [np.flatnonzero(data.corpus.owners == i) for i in range(len(data.corpus.photos))]
    for chosen in epochs(len(own), min(_BATCH, len(own)), seed):
        captions = [own[i][rng.integers(len(own[i]))] for i in chosen]
        yield Batch(jnp.asarray(data.corpus.photos[chosen]), jnp.asarray(data.words[captions]))


def _loss(keep: Keep | None) -> Any:
    def loss(model: Aligner, batch: Batch, key: Array) -> Float[Array, ""]:
        return contrastive_loss(model.scores(model.photos(batch.photos, keep, key), model.captions(batch.words)))

    return loss


def _all_scores(model: Split, keep: Keep | None, data: Data) -> Float[np.ndarray, "N C"]:
    graph, state = model
    photo = jax.jit(lambda state, photos: nnx.merge(graph, state).photos(photos, keep, jax.random.key(1)))
    caption = jax.jit(lambda state, words: nnx.merge(graph, state).captions(words))
    photos = over_batches(functools.partial(photo, state), _AT_ONCE, data.corpus.photos)
    captions = over_batches(functools.partial(caption, state), 2 * _AT_ONCE, data.words)
    return np.asarray(nnx.merge(graph, state).scores(jnp.asarray(photos), jnp.asarray(captions)))


def _times(settings: Settings, known: Vocabulary, train: Data) -> dict[str, Any]:
    """Seconds in which photos of a batch are encoded, and of a step of training, side by side for both models.

    Neither depends on the weights, which are therefore those of the start; the random choice is not timed.
    """
    graph, state = nnx.split(Aligner(settings.shape, known.size, rngs=nnx.Rngs(0)))
    batch = jax.tree.map(jnp.asarray, next(_batches(train, 0)))
    rule = optimizer(settings.steps, settings.learning_rate)
    memory = rule.init(state)
    calls, counted = {}, {}
    for form in ("unpruned", "learned"):
        keep = _keep(settings, form)

        def encode(state: nnx.State, photos: Array, keep: Keep | None = keep) -> Array:
            return nnx.merge(graph, state).photos(photos, keep)

        step = jax.jit(update_step(graph, _loss(keep), rule))
        calls[f"{form}, encode"] = functools.partial(jax.jit(encode), state, batch.photos)
        calls[f"{form}, train"] = functools.partial(step, state, memory, batch, jax.random.key(0))
        counted[form] = xla_flops(encode, state, batch.photos) / len(batch.photos)
    timings = time_side_by_side(calls, settings.rounds)
    return {
        "batch": len(batch.photos),
        "seconds": {name: timing.to_json() for name, timing in timings.items()},
        "xla_flops": counted,
    }


def _rows(settings: Settings, runs: Sequence[Mapping[str, Any]], times: Mapping[str, Any]) -> list[Row]:
    """One row for each form, the unpruned model first."""

    def found(form: str, measure: str) -> np.ndarray:
        return np.array([run[form][measure] for run in runs])

    measures = list(runs[0]["unpruned"])
    rows = []
    for form in FORMS:
        keep = _keep(settings, form)
        timed = "unpruned" if keep is None else "learned"
        rows.append(
            Row(
                form=form,
                tokens=settings.shape.tokens if keep is None else keep.count,
                photo_flops=photo_flops(settings.shape, keep),
                pair_flops=pair_flops(settings.shape, keep),
                xla_flops=times["xla_flops"][timed],
                encode=Timing(tuple(times["seconds"][f"{timed}, encode"])),
                train=Timing(tuple(times["seconds"][f"{timed}, train"])),
                recall={name: bootstrap(found(form, name)) for name in measures},
                difference={name: paired(found(form, name), found("unpruned", name)) for name in measures},
                lossyness={name: lossyness(found(form, name), found("unpruned", name)) for name in measures},
            )
        )
    return rows
