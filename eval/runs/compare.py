"""Differences between runs over the same samples, with their uncertainty."""

import dataclasses
import math

from eval import statistics
from eval.metrics import Mark
from eval.runs.score import Scored
from vila_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A run less its baseline, over the samples that both have; a failed one counts as wrong.

    Attributes:
      value, baseline: of the headline.
      low, high: the 95 % interval of `difference`.
      p_value: of Student's paired test; None for headlines that are no mean, whose interval is bootstrapped.
      n: samples that are compared.
      apart: samples that only one of the runs has.
    """

    value: float
    baseline: float
    difference: float
    low: float
    high: float
    p_value: float | None
    n: int
    apart: int


def compare(run: Scored, baseline: Scored) -> Comparison:
    """Compares two runs sample by sample, clustered by picture.

    Raises:
      DataError: they asked other questions, or were scored by other metrics.
    """
    _check_same(run, baseline)
    own = {record.index: mark for record, mark in zip(run.placed, run.marks, strict=True)}
    other = {record.index: mark for record, mark in zip(baseline.placed, baseline.marks, strict=True)}
    clusters = {record.index: record.cluster for record in run.placed}
    common = sorted(own.keys() & other.keys())
    pairs = [(own[index], other[index]) for index in common]
    pairs_clusters = [clusters[index] for index in common]
    apart = len(own.keys() ^ other.keys())
    if len(common) < 2:
        raise DataError("they have fewer than two samples in common", where=f"{run.folder} and {baseline.folder}")

    def apart_by(drawn: list[tuple[Mark, Mark]]) -> float:
        return run.value([a for a, _ in drawn]) - run.value([b for _, b in drawn])

    value, base = run.value([a for a, _ in pairs]), run.value([b for _, b in pairs])
    if math.isnan(value) or math.isnan(base):
        return Comparison(value, base, math.nan, math.nan, math.nan, None, len(pairs), apart)
    if not run.is_mean:
        low, high = statistics.bootstrap(pairs, pairs_clusters, apart_by)
        return Comparison(value, base, value - base, low, high, None, len(pairs), apart)
    found = statistics.paired_difference([a.score for a, _ in pairs], [b.score for _, b in pairs], pairs_clusters)
    return Comparison(value, base, found.mean, found.low, found.high, found.p_value, len(pairs), apart)


def _check_same(run: Scored, baseline: Scored) -> None:
    where = f"{run.folder} and {baseline.folder}"
    own, other = ({record.index: record for record in one.records if record.question} for one in (run, baseline))
    same = all(
        (own[i].id, own[i].question, own[i].references) == (other[i].id, other[i].question, other[i].references)
        for i in own.keys() & other.keys()
    )
    if not same or run.header["task"]["ids_sha256"] != baseline.header["task"]["ids_sha256"]:
        fix = "Compare runs of one task and one split, of the same --limit and --prompts."
        raise DataError("they did not ask the same questions", where=where, fix=fix)
    if (run.metric.name, run.variant) != (baseline.metric.name, baseline.variant):
        raise DataError("they are scored by different metrics", where=where, fix="Give both the same --variant.")


def baseline_of(runs: list[Scored]) -> Scored:
    """What the others are compared with: the run with all tokens, else the first."""
    return next((run for run in runs if run.header["budget"] is None), runs[0])
