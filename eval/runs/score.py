"""The numbers of a run, from its file alone: neither model nor data are needed, and metrics can be computed again."""

import dataclasses
import json
import math
import statistics as plain_statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import statistics
from eval.metrics import Answered, Mark, Metric, metric
from eval.metrics.ptb import tokenize
from eval.metrics.vqa import m4c_normalized, normalized
from eval.runs.folder import JUDGED, RESULT, SAMPLES, SCORES, shares, write_json, write_lines
from eval.runs.records import Record, read
from vila_jax.errors import DataError

_MEANS = frozenset({"accuracy", "overall", "CIDEr"})
"""Headlines that are the mean of the samples' scores; others are combined in ways of their own."""

_Z = 1.959964

_READ_AS: Mapping[str, Callable[[str], str]] = {
    "vqa_accuracy": normalized,
    "textvqa_accuracy": m4c_normalized,
    "captions": tokenize,
}
"""How metrics that compare normalised texts read an answer; the others read it without case and space around it."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """The samples of a run with their marks, in the order of the task.

    Attributes:
      header, sessions, damage: see `eval.runs.records.Contents`.
      placed: the records that have a mark: none without published answers; else all but those without a right
        answer, which could not be read, if the metric cannot place them.
      marks: of `placed`.
      judges: the judges whose verdicts are used, and hashes of what they were asked.
    """

    folder: Path
    header: dict[str, Any]
    sessions: list[dict[str, Any]]
    damage: list[str]
    records: list[Record]
    placed: list[Record]
    marks: list[Mark]
    metric: Metric
    variant: str
    judges: list[dict[str, str]]

    @property
    def name(self) -> str:
        """Task and number of shots, for people."""
        task = self.header["task"]
        return f"{task['name']} {task['split']}, {task['shots']}-shot"

    @property
    def is_mean(self) -> bool:
        """Whether the headline is the mean of the scores."""
        return self.metric.headline in _MEANS

    @property
    def has_references(self) -> bool:
        """Whether right answers are known; they are not for test splits with a server."""
        return any(record.references for record in self.records)

    def value(self, marks: Sequence[Mark]) -> float:
        """The headline of some marks."""
        return self.metric.combine(marks)[self.metric.headline]


def load(folder: Path, variant: str | None = None) -> Scored:
    """Reads and marks a run.

    Args:
      variant: of the metric, in place of the one of the task.

    Raises:
      DataError: there is no file, or those of several hosts are not merged yet.
      ConfigError: the metric has no such variant.
    """
    contents = read(folder / SAMPLES)
    if contents is None:
        if shares(folder):
            fix = "Run: python -m eval merge FOLDER"
            raise DataError("the shares of several hosts are not merged", where=str(folder), fix=fix)
        raise DataError("there is no samples.jsonl", where=str(folder), fix="Give the folder of a run.")
    task = contents.header["task"]
    measure = metric(task["metric"])
    variant = measure.variant(variant or task["variant"])
    records = [contents.records[index] for index in sorted(contents.records)]
    judged, damage = _judged(folder)
    known = [record for record in records if record.references]
    placed, marks = known, _marks(measure, known, variant, judged)
    if known and measure.headline in _MEANS:
        by_index = {record.index: mark for record, mark in zip(known, marks, strict=True)}
        placed, marks = records, [by_index.get(record.index, Mark(0.0)) for record in records]
    damage = [*contents.damage, *damage]
    used = [judged[record.key, variant] for record in records if (record.key, variant) in judged]
    names = {(verdict.get("judge", "?"), verdict.get("prompt_sha256", "?")) for verdict in used}
    judges = [{"judge": name, "prompt_sha256": prompt} for name, prompt in sorted(names)]
    return Scored(
        folder=folder,
        header=contents.header,
        sessions=contents.sessions,
        damage=damage,
        records=records,
        placed=placed,
        marks=marks,
        metric=measure,
        variant=variant,
        judges=judges,
    )


def _marks(
    measure: Metric, records: Sequence[Record], variant: str, judged: Mapping[tuple[str, str], Mapping[str, Any]]
) -> list[Mark]:
    samples = []
    for record in records:
        verdict = judged.get((record.key, variant), {})
        prediction = verdict.get("prediction", record.answer)
        extras = {**record.extras, **({"judged": verdict["score"]} if "score" in verdict else {})}
        samples.append(Answered(record.id, prediction, record.references, extras))
    return measure.marks(samples, variant) if samples else []


def _judged(folder: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """What a judge said, by the key of the answer and the variant it was asked for; and what of it is damaged."""
    path, damage = folder / JUDGED, list[str]()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            verdict = json.loads(line)
            found[verdict["key"], verdict["variant"]] = verdict
        except (ValueError, KeyError, TypeError):
            damage.append(f"{path.name}, line {number}: unreadable; what it said is lost")
    return found, damage


def score(folder: Path, variant: str | None = None) -> dict[str, Any]:
    """Scores a run, and writes `scores.jsonl` and `result.json`.

    Returns:
      What `result.json` holds: see `docs/evaluation.md`.
    """
    run = load(folder, variant)
    result = summarize(run)
    scores = {record.index: mark.score for record, mark in zip(run.placed, run.marks, strict=True)}
    read_as = _READ_AS.get(run.metric.name, lambda text: " ".join(text.lower().split()))
    rows = (
        {
            "index": record.index,
            "id": record.id,
            "normalised": None if record.answer is None else read_as(record.answer),
            "score": known(scores.get(record.index)) if run.has_references else None,
        }
        for record in run.records
    )
    write_lines(folder / SCORES, rows)
    write_json(folder / RESULT, result)
    return result


def summarize(run: Scored) -> dict[str, Any]:
    """The numbers of a run as plain data."""
    failures = [record for record in run.records if record.error is not None]
    done = [record for record in run.records if record.error is None]
    expected = run.header["task"]["n_expected"]
    number = {"expected": expected, "done": len(done), "failed": len(failures), "missing": expected - len(run.records)}
    return {
        "schema_version": run.header["schema_version"],
        "header": run.header,
        "sessions": run.sessions,
        "n": number,
        "failures": [{"id": record.id, **(record.error or {})} for record in failures],
        "warnings": _warnings(run, number),
        "metric": _value(run),
        "judges": run.judges,
        "tokens": {name: _spread([record.tokens[name] for record in done]) for name in _TOKENS},
        "seconds": _speed(done),
    }


_TOKENS = ("text", "visual", "visual_full", "new")


def _value(run: Scored) -> dict[str, Any]:
    numbers = run.metric.combine(run.marks) if run.has_references and run.marks else {}
    value = numbers.get(run.metric.headline, math.nan)
    error, low, high, method = _interval(run) if not math.isnan(value) else (math.nan, math.nan, math.nan, None)
    return {
        "name": run.metric.name,
        "variant": run.variant,
        "headline": run.metric.headline,
        "scale": run.metric.scale,
        "n": len(run.marks),
        "value": known(value),
        "standard_error": known(error),
        "low": known(low),
        "high": known(high),
        "method": method,
        "numbers": {name: known(number) for name, number in numbers.items()},
    }


def _interval(run: Scored) -> tuple[float, float, float, str]:
    """Standard error, the 95 % interval, and how they were found."""
    clusters, scores = [record.cluster for record in run.placed], [mark.score for mark in run.marks]
    if not run.is_mean:
        drawn: list[float] = []

        def draw(marks: list[Mark]) -> float:
            drawn.append(run.value(marks))
            return drawn[-1]

        low, high = statistics.bootstrap(run.marks, clusters, draw)
        return plain_statistics.pstdev(drawn), low, high, "bootstrap, clustered by picture"
    value, error = statistics.mean(scores), statistics.clustered_standard_error(scores, clusters)
    if len(set(clusters)) == len(clusters) and set(scores) <= {0.0, 1.0}:
        return error, *statistics.wilson(value, len(scores)), "Wilson"
    return error, value - _Z * error, value + _Z * error, "normal, clustered by picture"


def _warnings(run: Scored, number: Mapping[str, int]) -> list[str]:
    found = list(run.damage)
    if number["missing"]:
        found.append(f"{number['missing']} samples are missing: the run is not finished")
    if not run.has_references:
        found.append("right answers are not published: nothing is scored")
    elif lost := len(run.records) - len(run.placed):
        found.append(f"{lost} samples could not be read, and have no place in {run.metric.headline}: it is too high")
    if bare := sum(record.error is None and not record.references for record in run.records if run.has_references):
        found.append(f"{bare} samples have no right answer in the data")
    if unjudged := sum(math.isnan(mark.score) for mark in run.marks):
        found.append(f"{unjudged} answers are not judged")
    for name, what in (
        ("commit", "commits"),
        ("machine", "machines"),
        ("questions_sha256", "versions of the questions"),
    ):
        if len({str(session.get(name)) for session in run.sessions}) > 1:
            found.append(f"the sessions had several {what}")
    if len(run.judges) > 1:
        found.append("several judges, or the same with several prompts, have judged")
    if any(session.get("dirty") for session in run.sessions):
        found.append("the checkout had changes that were not committed")
    return found


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "mean": plain_statistics.fmean(values), "max": max(values)}


def _speed(done: Sequence[Record]) -> dict[str, Any]:
    """Seconds of a sample, mean and median over samples; the device's time is shared equally by those of a batch."""
    if not done:
        return {}
    phases = {name: [record.seconds[name] for record in done] for name in ("preprocess", "prefill", "decode")}
    device = [record.seconds["prefill"] + record.seconds["decode"] for record in done]
    new = sum(record.tokens["new"] for record in done)
    return {
        **{name: _middle(values) for name, values in phases.items()},
        "device": _middle(device),
        "samples_per_second": len(done) / sum(device) if sum(device) else None,
        "new_tokens_per_second": new / sum(device) if sum(device) else None,
    }


def _middle(values: Sequence[float]) -> dict[str, float]:
    return {"mean": plain_statistics.fmean(values), "median": plain_statistics.median(values)}


def known(value: float | None) -> float | None:
    """None for NaN, which is no JSON."""
    return None if value is None or math.isnan(value) else value
