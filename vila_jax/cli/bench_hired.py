"""The experiment of HiRED (arXiv 2408.10945, table 4): whole answers with all visual tokens, 40 % and 20 % of them.

The authors asked LLaVA-NeXT-7B once about a square random picture of 1000 pixels, and counted generated tokens over the
whole wall time: `tokens/s of wall`. That number is mostly prefill where prefill is slow, and mostly decode where it is
not. So the time to the first token, the rate of the tokens after it, and the gain that the machine's floors allow stand
beside it; and all are medians of repeats after a warm-up.
"""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from vila_jax.cli import measuring
from vila_jax.cli.bench_stages import measure
from vila_jax.cli.progress import Progress

if TYPE_CHECKING:
    from vila_jax.bench.results import Row

SUMMARY = "HiRED's experiment: full, 40 % and 20 % of the visual tokens, batch 1, 2 and 4"

_PICTURE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax bench hired`."""
    measuring.add_model(parser, default="llava-next-7b")
    measuring.add_cases(parser, "1,2,4", "full,hired:0.4,hired:0.2", new_tokens=100, picture=str(_PICTURE))
    measuring.add_output(parser)
    measuring.add_rates(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, and sets every row against the one with all tokens."""
    measuring.check_places(args)
    args.picture = args.picture or _PICTURE
    with Progress(enabled=args.json != "-") as progress:
        results = measure(args, ["generate"], progress)
    measuring.write(args, dataclasses.replace(results, rows=with_gains(results.rows)))
    return 0


def with_gains(rows: "list[Row]") -> "list[Row]":
    """Adds what each row gains over the one of its batch with all tokens, where there is one."""
    full = {row.case["batch"]: row for row in rows if row.case["budget"] is None and row.refused is None}
    return [_with_gain(row, full.get(row.case["batch"])) for row in rows]


def _with_gain(row: "Row", full: "Row | None") -> "Row":
    if full is None or row.refused is not None:
        return row
    gains = {
        "gain_of_wall": full.times["wall"].median / row.times["wall"].median,
        "gain_of_first_token": full.times["first_token"].median / row.times["first_token"].median,
        "gain_of_floor": full.facts["floor_seconds"] / row.facts["floor_seconds"],
    }
    return dataclasses.replace(row, facts=row.facts | gains)
