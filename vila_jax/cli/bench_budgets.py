"""Measures visual-token budgets beside each other: tokens, FLOPs, KV bytes, times, and with --eval right answers.

All budgets answer the same request in turns, `--repeats` times after a round that compiles. `--eval scenes` then puts
one question about each of `--samples` drawn, held-out scenes to every budget. A budget that the model cannot have is a
row that says why.

With --out the folder gets README.md (the tables, and which method wins where), budgets.json, budgets.csv and
budgets.png. budgets.json is written as rows are finished: the same command goes on from it, and a later one with more
methods adds their rows. Times are measured again for all rows then, so that they come from one run; exams are kept.
"""

import argparse
import pathlib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, terminal
from vila_jax.cli.progress import Progress
from vila_jax.errors import VilaError

if TYPE_CHECKING:
    from PIL import Image

    from vila_jax.bench.budgets.rows import Bench
    from vila_jax.exam.items import Item
    from vila_jax.model import Model

SUMMARY = "visual-token budgets: what they cost, and what is still seen"

NANO = "nano"
"""As MODEL: the one inside the package."""

_KEEPS = ("0.4", "0.2", "0.1")
_QUESTION = "How many shapes are there?"
_EXAM_BATCH = 32
_ENLARGED = 7  # a drawn scene has 96 pixels a side, enough for the tiles of nano alone
_EXAMS = ("scenes", "nano")  # two names of one exam: of held-out scenes, on which nano is judged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax bench budgets`."""
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a checkpoint, an id on the Hub, or nano: the embedded one"
    )
    arguments.add_revision(parser)
    parser.add_argument(
        "--methods",
        metavar="M,..",
        type=arguments.budgets,
        help="methods, with options where wanted, or whole budgets: hired,alpha=0.3,random,hired:0.4+fastv:0.5 "
        "(default: all there are)",
    )
    parser.add_argument(
        "--keep", metavar="K,..", type=arguments.listed, default=list(_KEEPS), help=f"default: {','.join(_KEEPS)}"
    )
    parser.add_argument(
        "--batch", metavar="N", type=arguments.whole(1), default=1, help="requests at once (default: 1)"
    )
    parser.add_argument("--repeats", metavar="N", type=arguments.whole(1), default=7, help="default: 7")
    parser.add_argument(
        "--new-tokens", metavar="N", type=arguments.whole(2), default=33, help="generated per request (default: 33)"
    )
    parser.add_argument(
        "--image", metavar="F", action="append", help="a picture; repeat it for several (default: drawn scenes)"
    )
    parser.add_argument("--question", metavar="TEXT", default=_QUESTION, help=f"default: {_QUESTION}")
    parser.add_argument("--eval", metavar="TASK", choices=_EXAMS, help="scenes: questions about drawn scenes")
    parser.add_argument(
        "--samples", metavar="N", type=arguments.whole(9), default=300, help="questions of the exam (default: 300)"
    )
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, help="folder of the report")
    parser.add_argument("--json", metavar="F", help="write all numbers as JSON; - is stdout, in place of the tables")
    parser.add_argument("--csv", metavar="F", type=pathlib.Path, help="write all numbers as CSV")
    arguments.add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, examines, writes."""
    from vila_jax.bench.budgets.cost import Load, measure_costs
    from vila_jax.bench.budgets.rows import Bench, make_cases
    from vila_jax.bench.budgets.store import Store

    cases = make_cases(args.methods, args.keep)
    _check_places(args)
    with Progress(enabled=args.json != "-") as progress:
        items = _exam(args, progress)
        load = Load(_pictures(args), args.question, args.new_tokens)
        model = _load(args, progress)
        bench = Bench(_settings(args, model, load), tuple(item.question.kind for item in items), [])
        store = Store(None if args.out is None else args.out / "budgets.json", bench, cases)
        if store.lacks_costs:
            store.put(*measure_costs(model, bench.rows, load, args.repeats, progress.phase))
        if items:
            _examine(model, items, bench, store, progress)
    _write(args, bench)
    return 0


def _check_places(args: argparse.Namespace) -> None:
    """Whether all files can be written, before minutes of work rather than after them."""
    from vila_jax.bench.budgets.chart import require_matplotlib
    from vila_jax.bench.budgets.report import check_page

    for name, path in (("--json", args.json), ("--csv", args.csv)):
        if path not in (None, "-") and not pathlib.Path(path).parent.is_dir():
            raise VilaError(f"there is no folder {pathlib.Path(path).parent}", where=name, fix="Create it first.")
    if args.out is not None:
        require_matplotlib()
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VilaError(f"it cannot be made: {error.strerror or error}", where=f"--out {args.out}") from None
        check_page(args.out / "README.md")


def _exam(args: argparse.Namespace, progress: Progress) -> "list[Item]":
    """The questions; before the model is loaded, since they may lack a package."""
    from vila_jax.exam.items import draw_exam

    if args.eval is None:
        return []
    progress.phase("drawing scenes")
    return draw_exam(args.samples)


def _pictures(args: argparse.Namespace) -> "list[Image.Image]":
    """One for every row of the batch; of drawn scenes the square ones, which have most tiles."""
    import itertools

    from PIL import Image

    from vila_jax.scenes import draw_scene
    from vila_jax.vision.open import open_image

    if args.image:
        opened = [open_image(source) for source in args.image]
        return list(itertools.islice(itertools.cycle(opened), args.batch))
    scenes = (Image.fromarray(draw_scene(seed, split="test").image) for seed in itertools.count())
    scale = 1 if args.model == NANO else _ENLARGED
    square = (
        scene.resize((scale * scene.width, scale * scene.height)) for scene in scenes if scene.width == scene.height
    )
    return list(itertools.islice(square, args.batch))


def _load(args: argparse.Namespace, progress: Progress) -> "Model":
    progress.phase("starting JAX")
    from vila_jax import assets
    from vila_jax.cli.cache import enable_compile_cache
    from vila_jax.cli.loading import load_model

    enable_compile_cache()
    return load_model(args, progress, path=str(assets.nano()) if args.model == NANO else None, on_compile=None)


def _settings(args: argparse.Namespace, model: "Model", load: Any) -> dict[str, Any]:
    """What rows must have in common to be compared; without folders of this machine."""
    from vila_jax.bench.results import environment
    from vila_jax.hf.identity import checkpoint_hash

    return {
        "model": args.model if args.model == NANO else pathlib.PurePath(args.model).name,
        "revision": args.revision,
        "checkpoint_sha256": checkpoint_hash(model.checkpoint),
        "dtype": model.engine.planner.dtype,
        **environment(),
        "batch": args.batch,
        "pictures": [list(picture.size) for picture in load.pictures],
        "question": load.question,
        "new_tokens": load.new_tokens,
        "repeats": args.repeats,
        "exam": None if args.eval is None else _EXAMS[0],
        "samples": None if args.eval is None else args.samples,
    }


def _examine(model: "Model", items: "Sequence[Item]", bench: "Bench", store: Any, progress: Progress) -> None:
    from vila_jax.bench.budgets.exam import examine
    from vila_jax.exam.examiner import Examiner

    examine(Examiner(model, batch=_EXAM_BATCH), items, bench, store, progress.phase)


def _write(args: argparse.Namespace, bench: "Bench") -> None:
    """Tables for the terminal, and all files."""
    import json

    from vila_jax.bench.budgets.table import write_csv

    if args.json == "-":
        terminal.print_json(bench.to_json())
    else:
        _print(bench)
    if args.json not in (None, "-"):
        pathlib.Path(args.json).write_text(json.dumps(bench.to_json(), indent=1) + "\n", encoding="utf-8")
    if args.csv is not None:
        write_csv(bench, args.csv)
    if args.out is not None:
        _write_report(args, bench)
        if args.json != "-":
            terminal.stdout().print(f"\nwrote {terminal.plain(str(args.out))}/README.md", soft_wrap=True)


def _print(bench: "Bench") -> None:
    from vila_jax.bench.budgets.table import NOTE, refusals, tables

    console = terminal.stdout()
    for made in tables(bench):
        shown = terminal.table(made.title, *made.columns)
        for row in made.rows:
            shown.add_row(*map(terminal.plain, row))
        console.print(shown)
        console.print()
    for name, reason in refusals(bench):
        console.print(f"[cyan]{terminal.plain(name)}[/]: {terminal.bad(reason)}")
    console.print(terminal.plain(NOTE), style="dim", width=min(console.width, 120))


def _write_report(args: argparse.Namespace, bench: "Bench") -> None:
    import datetime

    from vila_jax.bench.budgets.chart import draw_chart
    from vila_jax.bench.budgets.report import page
    from vila_jax.bench.budgets.table import write_csv

    write_csv(bench, args.out / "budgets.csv")
    settings, command = bench.settings, _command(args, bench)
    asked = f"{len(bench.kinds):,} held-out scenes, one question each; bars: 95 % intervals. " if bench.kinds else ""
    title = f"{settings['model']}: budgets of visual tokens"
    draw_chart(bench, args.out / "budgets.png", title=title, note=f"{asked}{settings['machine']}.")
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    made = (
        f"Written on {datetime.datetime.now(datetime.UTC).date()} on {settings['machine']}, "
        f"device {settings['device']}, {settings['dtype']} ({versions})."
    )
    text = page(bench, command=command, made=made, chart="budgets.png")
    (args.out / "README.md").write_text(text, encoding="utf-8")


def _command(args: argparse.Namespace, bench: "Bench") -> str:
    """The command that makes all rows anew, as far as it is not the default; of folders the names alone."""
    from vila_jax.budgets import METHODS

    cases = [row.case for row in bench.rows if row.case.budget is not None]
    methods = list(dict.fromkeys(case.method for case in cases))
    keeps = list(dict.fromkeys(str(case.keep) for case in cases if case.keep is not None))
    words = ["vila-jax", "bench", "budgets", bench.settings["model"]]
    words += [] if methods == list(METHODS) else ["--methods", ",".join(methods)]
    words += [] if keeps in ([], list(_KEEPS)) else ["--keep", ",".join(keeps)]
    for name, default in (("batch", 1), ("repeats", 7), ("new-tokens", 33), ("question", _QUESTION), ("dtype", None)):
        value = getattr(args, name.replace("-", "_"))
        words += [] if value == default else [f"--{name}", str(value)]
    for image in args.image or ():
        words += ["--image", pathlib.PurePath(image).name]
    if args.eval is not None:
        words += ["--eval", _EXAMS[0], "--samples", str(args.samples)]
    return shlex.join([*words, "--out", "DIR" if args.out.is_absolute() else str(args.out)])
