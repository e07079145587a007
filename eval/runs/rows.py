"""Runs as rows of a table: their numbers, and their differences to the run with all tokens."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.runs.compare import Comparison, baseline_of, compare
from eval.runs.folder import ALL_TOKENS
from eval.runs.score import Scored, load, summarize

_NAMED = 4  # runs that a warning names; of more it says how many


@dataclasses.dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
      result: see `eval.runs.score.summarize`.
      against: the comparison with the baseline of its group; None for the baseline itself.
    """

    run: Scored
    result: dict[str, Any]
    against: Comparison | None

    @property
    def name(self) -> str:
        """Task and number of shots."""
        return self.run.name

    @property
    def budget(self) -> str:
        """As asked for."""
        return self.run.header["budget"] or ALL_TOKENS

    @property
    def visual_tokens(self) -> float | None:
        """Of a sample, mean."""
        spread = self.result["tokens"]["visual"]
        return None if spread is None else spread["mean"]

    @property
    def milliseconds(self) -> float | None:
        """Of the device for a sample, median; the samples of a batch share its time."""
        seconds = self.result["seconds"]
        return 1000 * seconds["device"]["median"] if seconds else None


def rows(folders: Sequence[Path], variant: str | None = None) -> list[Row]:
    """The runs of some folders; those of one task, model and number of shots are compared with each other."""
    groups: dict[tuple[str, ...], list[Scored]] = {}
    for folder in folders:
        run = load(folder, variant)
        key = (run.name, run.header["model"]["checkpoint_sha256"], run.header["task"]["ids_sha256"], run.variant)
        groups.setdefault(key, []).append(run)
    return [_row(run, baseline_of(group)) for group in groups.values() for run in group]


def _row(run: Scored, baseline: Scored) -> Row:
    alone = run is baseline or not run.has_references or min(len(run.marks), len(baseline.marks)) < 2
    return Row(run, summarize(run), None if alone else compare(run, baseline))


def warnings(found: Sequence[Row]) -> list[str]:
    """What is to be known of some runs; what several have in common is said once."""
    named: dict[str, list[str]] = {}
    for row in found:
        for warning in row.result["warnings"]:
            named.setdefault(warning, []).append(row.budget)
    return [f"{_which(budgets, len(found))}: {text}" for text, budgets in named.items()]


def _which(budgets: Sequence[str], runs: int) -> str:
    if len(budgets) == runs:
        return "all runs"
    return ", ".join(budgets) if len(budgets) <= _NAMED else f"{len(budgets)} of {runs} runs"


def percent(metric: dict[str, Any], name: str) -> str:
    """A number of the headline as tables show it."""
    value = metric[name]
    return "—" if value is None else f"{metric['scale'] * value:.1f}"


def difference(row: Row) -> str:
    """`-3.2 (-5.0 to -1.4)`; empty for the baseline."""
    found, scale = row.against, row.result["metric"]["scale"]
    if found is None or math.isnan(found.difference):
        return ""
    return f"{scale * found.difference:+.1f} ({scale * found.low:+.1f} to {scale * found.high:+.1f})"


def tokens(result: dict[str, Any]) -> str:
    """Visual tokens of a sample, mean, and the range where there is one."""
    spread = result["tokens"]["visual"]
    if spread is None:
        return "—"
    if spread["min"] == spread["max"]:
        return f"{spread['mean']:.0f}"
    return f"{spread['mean']:.0f} ({spread['min']} to {spread['max']})"
