"""The study `vila_findings`: what VILA's authors found about pre-training, asked again of a model of 2.5 M weights."""

import argparse
import dataclasses
import functools
import gc
import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from eval.studies import findings_arms as arms
from eval.studies.findings_arms import ARMS, FULL, QUICK, Settings
from eval.studies.findings_measures import Marks, measure
from eval.studies.findings_report import Measured, Results, draw_chart, tables
from eval.studies.output import Journal, command, publish
from train.recipe import Stage
from train.run import Place, train
from train.runs import EXPORT, locate_start
from vila_jax.cli.cache import enable_compile_cache
from vila_jax.errors import ConfigError

SUMMARY = "VILA's three findings in miniature: a trained decoder, interleaved data, text blended in again"

START = "nano/align"
"""The run that all arms start from: VILA's first stage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the folders of runs."""
    parser.add_argument(
        "--nano",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help=f"folder of runs with {START}, which all arms start from and nothing is written to (default: runs)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="folder of the runs of this study; those that are there are not run again (default: runs)",
    )


def run(args: argparse.Namespace) -> None:
    """Trains every arm with every seed, measures, and writes the files."""
    enable_compile_cache()
    settings = dataclasses.replace(QUICK if args.quick else FULL, seeds=args.seeds)
    place = Place(args.runs, log_every=20)
    start = _start(args, place, settings)
    weights = hashlib.sha256((start / "model.safetensors").read_bytes()).hexdigest()
    asked = dataclasses.asdict(dataclasses.replace(settings, seeds=0))  # more seeds leave those that are there
    journal = Journal(args.out / f"{args.study}.partial.json", asked | {"weights": weights})
    results = _results(journal, place, settings, start, weights)
    made_by = command(args)
    note = (
        f"{settings.seeds} seeds; {settings.questions} questions, {settings.tasks} tasks, {settings.instructions} "
        f"instructions; bars: 95 %, dots: seeds. {made_by}"
    )
    draw_chart(results, args.out / f"{args.study}.png", note=note)
    publish(args, journal, made_by, settings, {"weights": weights} | results.to_json(), tables(results))


def _start(args: argparse.Namespace, place: Place, settings: Settings) -> Path:
    """The checkpoint that all arms start from.

    Raises:
      ConfigError: there is none yet.
    """
    if args.quick:
        return _trained(arms.narrow_start(settings), place)
    found = locate_start(START, args.nano)
    if found == START:
        raise ConfigError(
            f"there is no run {START}",
            where=str(args.nano),
            fix="Run `python -m train configs/nano/STAGE.py` for tower, language and align first, or give --nano DIR.",
        )
    return Path(found)


def _results(journal: Journal, place: Place, settings: Settings, start: Path, weights: str) -> Results:
    """Everything measured; what the journal has is read there."""
    before: dict[str, dict[int, Marks]] = {}
    after: dict[str, dict[int, Marks]] = {}
    asked = functools.partial(measure, start, settings, questions=False)
    before["aligned"] = {0: journal.once(f"{START} {weights[:8]}", asked)}
    for seed in range(settings.seeds):
        for name, arm in ARMS.items():
            first = arms.pretraining(arm, seed, settings, str(start), weights)
            second = arms.tuning(arm, seed, settings, first.name)
            early = functools.partial(_measured, first, place, settings, questions=False)
            late = functools.partial(_measured, second, place, settings, questions=True)
            before.setdefault(arm.pretraining, {})[seed] = journal.once(first.name, early)
            after.setdefault(name, {})[seed] = journal.once(second.name, late)
    return Results(_arrays(before), _arrays(after))


def _measured(stage: Stage, place: Place, settings: Settings, *, questions: bool) -> Marks:
    """Trains, measures, and lets go of the programs: a process can hold those of a few runs alone."""
    marks = measure(_trained(stage, place), settings, questions=questions)
    jax.clear_caches()
    gc.collect()
    return marks


def _trained(stage: Stage, place: Place) -> Path:
    """What a stage exports; where it was interrupted it goes on, and where it has finished nothing is done.

    Raises:
      SystemExit: a signal has stopped it; the same command goes on from there.
    """
    if code := train(stage, place):
        raise SystemExit(code)
    return place.runs / stage.name / EXPORT


def _arrays(runs: Mapping[str, Mapping[int, Marks]]) -> dict[str, Measured]:
    """The marks of all seeds together, measure by measure."""
    return {name: {key: np.array([one[key] for one in own.values()]) for key in own[0]} for name, own in runs.items()}
