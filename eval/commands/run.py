"""Asks a model the questions of benchmarks, with one or several budgets of visual tokens, and scores the answers.

Every answer is written as soon as its batch is done. The same command goes on where it was stopped, and asks again what
failed. The exit status is not 0 if a sample failed.
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console

from eval.commands import tables
from eval.runs import identity, records
from eval.runs.answer import Runner
from eval.runs.failures import draw_failures
from eval.runs.folder import ALL_TOKENS, run_folder, samples_file
from eval.runs.identity import Generation
from eval.runs.items import Questions
from eval.runs.report import write_report
from eval.runs.score import score
from eval.tasks import STYLES, TASKS, task
from vila_jax import assets
from vila_jax.budgets import Budget
from vila_jax.cli import arguments
from vila_jax.cli.cache import enable_compile_cache
from vila_jax.errors import ConfigError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.hub import fetch_data
from vila_jax.model import Model, from_pretrained, parse_budget

console = Console(stderr=True, highlight=False)
_FAILED = 12
"""The exit status where all was run, but samples failed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval run`."""
    parser.add_argument(
        "--model", required=True, metavar="M", help="folder, id on the Hub, or `nano`, the embedded one"
    )
    arguments.add_revision(parser)
    arguments.add_dtype(parser)
    parser.add_argument("--tasks", required=True, metavar="A,B", help=f"of: {', '.join(TASKS)}")
    parser.add_argument(
        "--data",
        default=".",
        metavar="DIR",
        help="the files of tasks, in folders of their names if several; hub:OWNER/NAME downloads a data set",
    )
    parser.add_argument("--include", nargs="+", default=[], metavar="PATTERN", help="files to download (default: all)")
    parser.add_argument(
        "--most-gib", type=arguments.whole(1), default=20, metavar="N", help="to download at most (default: 20)"
    )
    parser.add_argument("--split", metavar="S", help="of all tasks (default: the first of each)")
    parser.add_argument("--prompts", choices=STYLES, default=STYLES[0], help=f"whose (default: {STYLES[0]})")
    parser.add_argument(
        "--budget",
        nargs="+",
        default=[ALL_TOKENS],
        metavar="SPEC",
        help=f"e.g. {ALL_TOKENS} hired:0.2 (default: {ALL_TOKENS})",
    )
    parser.add_argument(
        "--shots", nargs="+", type=arguments.whole(0), default=[0], metavar="K", help="demonstrations (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the demonstrations (default: 0)")
    parser.add_argument("--limit", type=arguments.whole(1), metavar="N", help="the first N samples of each task only")
    parser.add_argument("--out", type=Path, default=Path("runs/eval"), metavar="DIR", help="default: runs/eval")
    parser.add_argument("--host", type=_host, default=(0, 1), metavar="i/n", help="share i of n; then `eval merge`")
    parser.add_argument("--batch", type=arguments.whole(1), default=8, metavar="N", help="samples at once (default: 8)")
    parser.add_argument(
        "--workers",
        type=arguments.whole(1),
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="that prepare pictures",
    )
    parser.add_argument(
        "--max-new-tokens", type=arguments.whole(1), metavar="N", help="instead of the task's own limit"
    )
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="texts that end an answer")
    parser.add_argument("--style", metavar="NAME", help="conversation style (default: the checkpoint's)")
    parser.add_argument(
        "--draw", type=arguments.whole(0), default=4, metavar="N", help="failures to draw of each run (default: 4)"
    )


def _host(text: str) -> tuple[int, int]:
    first, slash, last = text.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"expected i/n with i from 0 to n - 1, got {text!r}")
    return int(first), int(last)


@dataclasses.dataclass(frozen=True)
class _Run:
    """One task, one number of demonstrations, one budget."""

    questions: Questions
    demonstrations: tuple[Any, ...]
    description: dict[str, Any]
    contents: str
    budget: Budget | None

    @property
    def group(self) -> str:
        """Runs of one group are compared with each other."""
        return self.questions.task.name + (f", {self.questions.shots}-shot" if self.questions.shots else "")

    @property
    def name(self) -> str:
        return f"{self.group}, {ALL_TOKENS if self.budget is None else self.budget}"


def run(args: argparse.Namespace) -> int:
    """Asks, scores and reports."""
    enable_compile_cache()
    name = str(assets.nano()) if args.model == "nano" else args.model
    checkpoint = open_checkpoint(name, revision=args.revision, era=args.era)
    budgets = [parse_budget(None if spec == ALL_TOKENS else spec, checkpoint) for spec in args.budget]
    data = _data(args)
    wanted = [_questions(args, data, task_name) for task_name in args.tasks.split(",")]
    plan = [one for questions in wanted for one in _plan(questions, args.shots, budgets)]
    model = from_pretrained(name, dtype=args.dtype, revision=args.revision, era=args.era, style=args.style)
    of_model = identity.of_model(model)
    runner = Runner(model, args.batch, args.workers)
    failed, folders = 0, list[Path]()
    for one in plan:
        folder = run_folder(
            args.out, _place(one.questions), one.questions.shots, str(one.budget) if one.budget else None
        )
        failed += _ask(runner, one, args, of_model, folder)
        folders.append(folder)
    if args.host[1] > 1:
        console.print(f"share {args.host[0]} of {args.host[1]} is done; when all are: python -m eval merge {args.out}")
        return _FAILED if failed else 0
    _conclude(model, plan, folders, args)
    return _FAILED if failed else 0


def _place(questions: Questions) -> str:
    """The default split goes without saying."""
    own = questions.task
    return own.name if questions.split == own.splits[0] else f"{own.name}-{questions.split}"


def _data(args: argparse.Namespace) -> Path:
    """The folder of the tasks' files."""
    before, scheme, hub_id = args.data.partition("hub:")
    if scheme and not before:
        return Path(fetch_data(hub_id, include=args.include, most=args.most_gib * 2**30))
    if args.include:
        raise ConfigError("--include names files to download", where="--data", fix="Write --data hub:OWNER/NAME.")
    return Path(args.data)


def _questions(args: argparse.Namespace, data: Path, name: str) -> Questions:
    own = task(name)
    if own.metric == "retrieval_recall":
        fix = "Retrieval is measured by `python -m eval study caption_alignment`."
        raise ConfigError(f"{name} asks for scores of pairs, not for answers", where="--tasks", fix=fix)
    folder = data / name if (data / name).is_dir() else data
    return Questions(own, folder, args.split or own.splits[0], args.prompts, args.limit, seed=args.seed)


def _plan(questions: Questions, shots: Sequence[int], budgets: Sequence[Budget | None]) -> Iterator[_Run]:
    for count in shots:
        shown = dataclasses.replace(questions, shots=count)
        demonstrations = shown.demonstrations()
        description, contents = shown.describe(demonstrations)
        for budget in budgets:
            yield _Run(shown, demonstrations, description, contents, budget)


def _generation(one: _Run, args: argparse.Namespace) -> Generation:
    limit = args.max_new_tokens or one.questions.task.max_new_tokens[one.questions.style]
    return Generation(limit, tuple(args.stop))


def _ask(runner: Runner, one: _Run, args: argparse.Namespace, of_model: dict[str, Any], folder: Path) -> int:
    """Runs one share of one run, and returns how many of its samples failed."""
    generation = _generation(one, args)
    header = identity.header(of_model, one.description, budget=one.budget, generation=generation, host=args.host)
    items = one.questions.items(one.demonstrations, args.host)
    expected = len(range(args.host[0], one.description["n_expected"], args.host[1]))
    failures: set[str] = set()
    with (
        records.Writer(samples_file(folder, args.host), header, identity.session(one.contents)) as writer,
        _bar() as shown,
    ):
        bar = shown.add_task(one.name, total=expected, failed="")
        for own in runner.records(items, one.budget, generation, header["run_id"], writer.before):
            writer.add(own)
            failures |= {record.id for record in own if record.error is not None}
            shown.update(bar, advance=max(1, len(own)), failed=f"{len(failures)} failed" if failures else "")
        writer.end(identity.session_end())
    if failures:
        console.print(f"{one.name}: {len(failures)} of {expected} samples failed", style="red")
    return len(failures)


def _bar() -> bars.Progress:
    columns = (
        bars.TextColumn("{task.description:<36}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("[red]{task.fields[failed]}"),
    )
    return bars.Progress(*columns, console=console)


def _conclude(model: Model, plan: Sequence[_Run], folders: Sequence[Path], args: argparse.Namespace) -> None:
    """Scores all runs, draws what went wrong, and writes the report."""
    for folder in folders:
        score(folder)
    baselines: dict[str, Path] = {}
    for one, folder in sorted(zip(plan, folders, strict=True), key=lambda pair: pair[0].budget is not None):
        baselines.setdefault(one.group, folder)  # the run with all tokens, else the first
    for one, folder in zip(plan, folders, strict=True):
        if args.draw:
            items = functools.partial(one.questions.items, one.demonstrations)
            draw_failures(model, items, folder, baselines[one.group], one.budget, args.draw)
    tables.show(folders)
    console.print(f"wrote {write_report(args.out)}", soft_wrap=True)
