"""`vila-jax bench {prefill,decode,generate,vision,compile}`: the stages of a request, each with its floor."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from vila_jax.cli import measuring
from vila_jax.cli.progress import Progress

if TYPE_CHECKING:
    from vila_jax.bench.results import Results


@dataclasses.dataclass(frozen=True)
class StageBench:
    """One of them, as `vila_jax.cli.bench` wants it.

    Attributes:
      name: in `vila_jax.bench.stages.BENCHES`.
      SUMMARY, __doc__: its help.
    """

    name: str
    SUMMARY: str
    __doc__: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares its arguments."""
        measuring.add_model(parser)
        measuring.add_variants(parser)
        measuring.add_cases(parser)
        measuring.add_output(parser)
        measuring.add_rates(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Measures all combinations of --batch and --budget."""
        measuring.check_places(args)
        with Progress(enabled=args.json != "-") as progress:
            results = measure(args, [self.name], progress)
        measuring.write(args, results)
        return 0


def measure(args: argparse.Namespace, benches: list[str], progress: Progress) -> "Results":
    """Measures a model as the command line says."""
    from vila_jax.bench.results import Results, settings
    from vila_jax.bench.stages import measure_cases

    subject = measuring.load_subject(args, progress)
    cases = measuring.make_cases(args, subject)
    rates = measuring.find_rates(args, subject.dtype, progress)
    rows = measure_cases(subject, benches, cases, rates, args.repeats, progress.phase)
    return Results(settings(measuring.command_of(args), rates), rows)


_RANDOM = "A preset has random weights, made on the device; prompts are random ids, pictures random JPEG files."

STAGES = {
    name: StageBench(name, summary, f"{text}\n\n{_RANDOM}")
    for name, summary, text in (
        (
            "prefill",
            "time to the first token, on the device and on the wall",
            "Measures the time to the first token: on the device, from arrays that lie there, and on the wall, from "
            "the\nfiles of the pictures.",
        ),
        (
            "decode",
            "time of a decode step",
            "Measures a decode step, in which every row of the batch gets one more token; its cache holds the prompt "
            "and\nwhat was generated.",
        ),
        (
            "generate",
            "whole answers, as a user waits for them",
            "Measures whole answers on the wall, from the files of the pictures to the last token.",
        ),
        (
            "vision",
            "pictures: preparing them, vision tower, choice and projection of tokens",
            "Measures the way of the pictures: preparing them on the host, the vision tower, and the choice and "
            "projection\nof tokens.",
        ),
        (
            "compile",
            "seconds to compile the programs of a request, from nothing",
            "Measures how long the programs of a request take to compile, from nothing: the compile cache is not read.",
        ),
    )
}
"""By name."""
