"""Tables and chart of the study `vila_findings`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from eval.studies.measure import Estimate, bootstrap, paired
from eval.studies.output import GREY, chart, table

Measured = Mapping[str, Float[np.ndarray, "S N"]]
"""Of every measure, what every seed made of every item."""

MEASURES = {"questions": "zero-shot", "examples": "4-shot", "text": "text"}
"""Shares of right answers, in the order of the tables, as people read them."""

LOSSES = {"examples_loss": "4-shot loss", "loss": "text loss"}
"""Nats per token of right answers, likewise. They tell models apart of which none, or each, writes the whole answer."""

STAGES = {
    "aligned": "none, as all arms start",
    "frozen-both": "both, decoder frozen",
    "trained-pairs": "caption pairs",
    "trained-interleaved": "interleaved documents",
    "trained-both": "both",
}
"""Models before instruction tuning, by their pre-training."""

_COLORS = (GREY, "#8fa3b8", "#2a7f9e")


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that VILA's authors found between two arms.

    Attributes:
      arm: that is compared with the baseline of the finding.
      measure: one of `MEASURES`.
      there: what they found, in points of their own averages (arXiv 2312.07533v4, tables of the ablations; for text
        MMLU).
      expected: sign of what is to be found here; 0 where they found no difference worth the name.
    """

    arm: str
    measure: str
    there: float
    expected: int


@dataclasses.dataclass(frozen=True)
class Finding:
    """A question with its arms.

    Attributes:
      arms: name -> how people read it; the first is the baseline.
    """

    title: str
    arms: Mapping[str, str]
    claims: Sequence[Claim]

    @property
    def baseline(self) -> str:
        return next(iter(self.arms))


FINDINGS = (
    Finding(
        "the decoder in pre-training",
        {"frozen": "frozen", "both": "trained"},
        (Claim("both", "questions", 0.0, 0), Claim("both", "examples", 11.2, 1)),
    ),
    Finding(
        "data of pre-training",
        {"pairs": "caption pairs", "interleaved": "interleaved", "both": "both"},
        (
            Claim("interleaved", "questions", 17.6, 1),
            Claim("interleaved", "examples", 20.6, 1),
            Claim("interleaved", "text", 11.9, 1),
            Claim("both", "questions", 17.9, 1),
            Claim("both", "examples", 21.0, 1),
            Claim("both", "text", 11.4, 1),
        ),
    ),
    Finding(
        "text in instruction tuning",
        {"both": "pictures alone", "text": "text blended in"},
        (Claim("text", "questions", 3.3, 1), Claim("text", "examples", 2.3, 1), Claim("text", "text", 10.7, 1)),
    ),
)


@dataclasses.dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
      before: models before instruction tuning, by the names of `STAGES`; they have no `questions`.
      after: the arms by name.
    """

    before: Mapping[str, Measured]
    after: Mapping[str, Measured]

    def difference(self, finding: Finding, claim: Claim) -> Estimate:
        """Of a claim's arm to the baseline of its finding, paired."""
        return paired(self.after[claim.arm][claim.measure], self.after[finding.baseline][claim.measure])

    def to_json(self) -> dict[str, Any]:
        """Plain data; accuracies are fractions of 1, losses nats per token."""
        return {
            "before": {name: _summaries(measured) for name, measured in self.before.items()},
            "after": {name: _summaries(measured) for name, measured in self.after.items()},
            "claims": [
                dataclasses.asdict(claim)
                | {"finding": finding.title, "baseline": finding.baseline}
                | {"here": dataclasses.asdict(here), "verdict": verdict(claim, here)}
                for finding in FINDINGS
                for claim in finding.claims
                for here in [self.difference(finding, claim)]
            ],
        }


def verdict(claim: Claim, here: Estimate) -> str:
    """Whether a difference is what was expected, as far as its interval tells."""
    if here.low == here.high:  # all or nothing is right everywhere
        return "cannot be told"
    unclear = here.holds(0)
    if claim.expected == 0:
        return "agrees, as far as can be told" if unclear else "differs"
    if unclear:
        return "cannot be told"
    return "agrees" if here.mean * claim.expected > 0 else "the opposite"


def tables(results: Results) -> str:
    """Every finding with its arms and claims, and what the models knew before instruction tuning."""
    head = ("instruction tuned", *(f"{name}, %" for name in MEASURES.values()), *LOSSES.values())
    parts = []
    for number, finding in enumerate(FINDINGS, start=1):
        rows = [(label, *_cells(results.after[arm])) for arm, label in finding.arms.items()]
        parts += [f"**{number}. {finding.title[0].upper()}{finding.title[1:]}**\n", table(head, rows)]
        parts.append(table(("difference, points", "VILA", "here", "verdict"), _claims(results, finding)))
        parts.append(table(("difference, nats", "here", "verdict"), _losses(results, finding)))
    before = [(label, *_cells(results.before[name])[1:]) for name, label in STAGES.items()]
    return "\n".join([*parts, "**Before instruction tuning**\n", table(("pre-trained on", *head[2:]), before)])


def _claims(results: Results, finding: Finding) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for claim in finding.claims:
        here = results.difference(finding, claim)
        what = f"{MEASURES[claim.measure]}: {finding.arms[claim.arm]} against {finding.arms[finding.baseline]}"
        rows.append((what, f"{claim.there:+.1f}", here.percent(sign=True), verdict(claim, here)))
    return rows


def _losses(results: Results, finding: Finding) -> list[tuple[str, ...]]:
    """How much every other arm of a finding loses less, or more, than the baseline."""
    rows: list[tuple[str, ...]] = []
    for arm, label in list(finding.arms.items())[1:]:
        for name, text in LOSSES.items():
            here = paired(results.after[arm][name], results.after[finding.baseline][name])
            said = "cannot be told" if here.holds(0) else "better" if here.mean < 0 else "worse"
            what = f"{text}: {label} against {finding.arms[finding.baseline]}"
            rows.append((what, here.text(sign=True), said))
    return rows


def _cells(measured: Measured) -> tuple[str, ...]:
    """`61.2 ± 1.4 (58.8 to 63.5)` for every measure, losses last; nothing where it was not asked."""
    shares = ["" if name not in measured else _cell(measured[name], percent=True) for name in MEASURES]
    return (*shares, *(_cell(measured[name], percent=False) for name in LOSSES))


def _cell(values: Float[np.ndarray, "S N"], *, percent: bool) -> str:
    estimate, spread = bootstrap(values), deviation(values)
    mean, behind, interval = (estimate.percent() if percent else estimate.text()).partition(" ")
    if spread is None:
        return mean + behind + interval
    return f"{mean} ± {f'{100 * spread:.1f}' if percent else f'{spread:.3f}'}{behind}{interval}"


def deviation(values: Float[np.ndarray, "S N"]) -> float | None:
    """Standard deviation over the seeds; None when there is one."""
    means = values.mean(axis=1)
    return float(means.std(ddof=1)) if len(means) > 1 else None


def _summaries(measured: Measured) -> dict[str, Any]:
    return {
        name: dataclasses.asdict(bootstrap(values))
        | {"sd_over_seeds": deviation(values), "seeds": values.mean(axis=1).tolist(), "items": values.shape[1]}
        for name, values in measured.items()
    }


def draw_chart(results: Results, path: Path, *, note: str) -> None:
    """The arms of every finding by measure; dots are single seeds."""
    title = "vila_findings: three findings of VILA in miniature, after instruction tuning"
    with chart(path, title=title, note=note, panels=len(FINDINGS)) as panels:
        for axes, finding in zip(panels, FINDINGS, strict=True):
            _draw(axes, results, finding)


def _draw(axes: Any, results: Results, finding: Finding) -> None:
    width = 0.8 / len(finding.arms)
    for number, (arm, label) in enumerate(finding.arms.items()):
        values = [100 * results.after[arm][name] for name in MEASURES]
        own = [bootstrap(one) for one in values]
        places = [i + (number - (len(finding.arms) - 1) / 2) * width for i in range(len(MEASURES))]
        bars = [[one.mean - one.low for one in own], [one.high - one.mean for one in own]]
        axes.bar(
            places,
            [one.mean for one in own],
            yerr=bars,
            width=0.92 * width,
            color=_COLORS[number],
            capsize=2,
            error_kw={"elinewidth": 1},
            label=label,
        )
        for place, one in zip(places, values, strict=True):
            seeds = one.mean(axis=1)
            axes.plot([place] * len(seeds), seeds, "o", color="black", markersize=2.5, alpha=0.6)
    axes.set_ylim(0, 116)
    axes.set_xticks(range(len(MEASURES)), list(MEASURES.values()))
    axes.set_title(f"{finding.title}, % right", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=len(finding.arms), columnspacing=1, handlelength=1)
