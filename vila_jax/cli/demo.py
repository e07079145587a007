"""Shows what a visual-token budget does, with the model inside the package: no download, no photo, about a minute.

nano, a LLaVA-NeXT in miniature, answers questions about drawn scenes that it has not been trained on: with all visual
tokens, and with the fifth of them that HiRED chooses. Then it takes an exam, one question about each of as many scenes
as the time allows, with fewer and fewer tokens, chosen in several ways. `docs/nano.md` tells of the whole exam.

Into the folder --out go the scenes (scene_*.png), the patches that HiRED keeps of them (tokens_*.png), the answers
(answers.png) and a chart of the exam (accuracy.png).
"""

import argparse
import importlib.util
import itertools
import math
import pathlib
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, terminal, units
from vila_jax.cli.progress import Progress
from vila_jax.errors import VilaError

if TYPE_CHECKING:
    from vila_jax.cli.answer_sheet import Exhibit
    from vila_jax.exam.examiner import Examiner, Method, Setting
    from vila_jax.exam.items import Item, Reply
    from vila_jax.exam.results import Row
    from vila_jax.model import Model
    from vila_jax.scenes import Scene

SUMMARY = "see it work: the embedded model answers questions about drawn scenes"

KEEP = 0.2
"""The budget on show."""

_SCENES, _QUESTIONS = 4, 4
_BATCH, _MOST_BATCHES = 32, 8
_COMPARED: tuple["Method", ...] = ("hired", "random", "downsample")
_KEEPS = (KEEP, 0.4, 0.1)
_LONGEST = len("orange triangle")  # of all right answers
_NEEDS = ("sklearn", "matplotlib")

_ABOUT = (
    "It was trained from nothing by this repository (configs/nano) on scenes like these, and on nothing else: it "
    "knows shapes, colours, places, handwritten digits and two dozen words. It shows that the whole road works "
    "(checkpoint, tiles, budget, decoding), and what a budget costs; it does not show what a 7B model can do, and of "
    "a photo it can say nothing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax demo`."""
    parser.add_argument("--out", metavar="DIR", default="demo_out", type=pathlib.Path, help="default: demo_out")
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=arguments.whole(0),
        default=45,
        help="when, after the start, the exam takes up no more scenes (default: 45)",
    )
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Loads, shows, examines, draws."""
    start = time.perf_counter()
    _check_extra()
    _make_folder(args.out)
    console = terminal.stdout()
    with Progress(enabled=not args.json) as progress:
        model = _load(progress)
        from vila_jax.exam.examiner import Examiner, Setting

        examiner = Examiner(model, batch=_BATCH)
        exhibits = _exhibits(examiner, [Setting("full"), Setting("hired", KEEP)], progress)
        files = _draw_scenes(model, exhibits, args.out, progress)
        if not args.json:
            progress.finish()
            _print_exhibits(console, model, exhibits)
        rows = _examine(examiner, start + args.seconds, progress)
        files.append(_draw_chart(rows, args.out))
    took = time.perf_counter() - start
    if args.json:
        terminal.print_json(_facts(exhibits, rows, files, took))
    else:
        _print_rows(console, rows)
        _print_files(console, args.out, files, took)
    return 0


def _check_extra() -> None:
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        named = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}
        what = f"{' and '.join(named[name] for name in missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise VilaError(what, where="demo", fix="Run: pip install 'vila-jax[demo]'")


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VilaError(f"it cannot be made: {error.strerror or error}", where=f"--out {folder}") from None


def _load(progress: Progress) -> "Model":
    progress.phase("starting JAX")
    from vila_jax import assets
    from vila_jax.cli.cache import enable_compile_cache
    from vila_jax.model import from_pretrained

    enable_compile_cache()
    return from_pretrained(str(assets.nano()), on_tensor=progress.on_tensor, on_compile=progress.on_compile)


def _exhibits(examiner: "Examiner", shown: Sequence["Setting"], progress: Progress) -> list["Exhibit"]:
    """The first scenes of the test split, and what the model says about them."""
    from vila_jax.cli.answer_sheet import Exhibit
    from vila_jax.scenes import draw_scene

    progress.phase("drawing scenes")
    asked = [_questions(draw_scene(seed, split="test"), seed) for seed in range(_SCENES)]
    items = list(itertools.chain(*asked))
    replies = []
    for setting in shown:
        progress.phase(f"answering {len(items)} questions")
        replies.append(iter(examiner.replies(items, setting)))
    return [Exhibit(own, [list(itertools.islice(said, len(own))) for said in replies]) for own in asked]


def _questions(scene: "Scene", number: int) -> list["Item"]:
    """Questions of different kinds, what is to be read first; which coarse kinds goes round with the number."""
    from vila_jax.exam.items import Item
    from vila_jax.scenes import COARSE, FINE

    turn = 2 * number % len(COARSE)
    first = {question.kind: question for question in reversed(scene.questions)}
    kinds = [kind for kind in (*FINE, *COARSE[turn:], *COARSE[:turn]) if kind in first]
    return [Item(scene, first[kind]) for kind in kinds[:_QUESTIONS]]


def _draw_scenes(
    model: "Model", exhibits: Sequence["Exhibit"], folder: pathlib.Path, progress: Progress
) -> list[pathlib.Path]:
    """The scenes as the model gets them, the patches kept of them, and the answers."""
    from vila_jax.budgets import Budget
    from vila_jax.cli.answer_sheet import draw_sheet
    from vila_jax.cli.overlay import Choice, draw

    progress.phase("drawing what is kept")
    budget, pictures = Budget.of("hired", KEEP), {}
    for number, exhibit in enumerate(exhibits, start=1):
        picture = exhibit.picture
        image = model.preprocessor(picture)
        chosen = model.engine.chosen(image, budget=budget)
        full = model.count_tokens(image.image_size, None)
        heading = f"nano · scene {number} · {picture.width} x {picture.height} px"
        pictures[f"scene_{number}.png"] = picture
        choice = Choice(str(budget), image, chosen, len(chosen.indices), full)
        pictures[f"tokens_{number}.png"] = draw(model.preprocessor, [choice], heading)
    heading = f"nano · held-out scenes · with all visual tokens and with {100 * KEEP:g} % of the patches (HiRED)"
    pictures["answers.png"] = draw_sheet(exhibits, heading)
    for name, picture in pictures.items():
        _save(picture, folder / name)
    return [folder / name for name in pictures]


def _save(picture: Any, path: pathlib.Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise VilaError(f"it cannot be written: {error.strerror or error}", where=str(path)) from None


def _examine(examiner: "Examiner", deadline: float, progress: Progress) -> list["Row"]:
    """As many scenes, in whole batches, as can be asked about before the deadline, at least one batch.

    When compiling alone takes until then, the settings that were not reached are left out.
    """
    from vila_jax.exam.examiner import Setting
    from vila_jax.exam.items import draw_exam
    from vila_jax.exam.results import LABELS, tabulate

    settings = [Setting("full"), Setting("blank"), *(Setting(m, keep) for keep in _KEEPS for m in _COMPARED)]
    items = draw_exam(_BATCH * _MOST_BATCHES)
    replies: dict[Setting, list[Reply]] = {}
    longest = 0.0
    for first in range(0, len(items), _BATCH):
        started = time.perf_counter()
        if first and started + longest > deadline:
            break
        for setting in list(replies) if first else settings:
            if not first and replies and time.perf_counter() > deadline:
                break
            progress.phase(f"exam, scenes {first + 1} to {first + _BATCH}: {LABELS[setting.method]}")
            replies.setdefault(setting, []).extend(examiner.replies(items[first : first + _BATCH], setting))
        if first:  # the first round compiles
            longest = max(longest, time.perf_counter() - started)
    return tabulate(replies)


def _draw_chart(rows: Sequence["Row"], folder: pathlib.Path) -> pathlib.Path:
    from vila_jax.exam.chart import draw_chart

    asked = rows[0].scores["all"][0].asked
    note = f"{asked} held-out scenes, one question each; bars: 95 % interval. The whole exam: docs/nano.md"
    draw_chart(rows, folder / "accuracy.png", title="nano: accuracy against visual tokens", note=note)
    return folder / "accuracy.png"


def _print_exhibits(console: Any, model: "Model", exhibits: Sequence["Exhibit"]) -> None:
    from vila_jax.bench.memory import parameter_shapes

    count = sum(math.prod(shape) for shape in parameter_shapes(model.config.vlm).values())
    console.print(f"[bold]nano[/], the embedded model: a LLaVA-NeXT of {units.count(count)} parameters.")
    console.print(_ABOUT + "\n", style="dim", width=min(console.width, 100))
    table = terminal.table(None)
    table.add_column("question", style="cyan", min_width=20)  # the one that is broken on a narrow terminal
    for name in ("truth", "all tokens", f"HiRED, {100 * KEEP:g} %"):
        table.add_column(name, no_wrap=True)
    for number, exhibit in enumerate(exhibits, start=1):
        table.add_row(f"[bold]scene_{number}.png[/]")
        for i, item in enumerate(exhibit.items):
            cells = [_marked(replies[i]) for replies in exhibit.replies]
            table.add_row(item.question.text, item.question.answer, *cells, end_section=i == len(exhibit.items) - 1)
    console.print(table)
    for replies in zip(*(exhibit.replies for exhibit in exhibits), strict=True):
        own = list(itertools.chain(*replies))
        tokens = sorted({reply.tokens for reply in own}, reverse=True)
        right = sum(reply.right for reply in own)
        console.print(f"{' or '.join(map(str, tokens))} visual tokens: {right} of {len(own)} right")
    console.print()


def _marked(reply: "Reply") -> str:
    text = reply.text or "(nothing)"
    text = terminal.plain(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")
    return f"[green]✓ {text}[/]" if reply.right else f"[red]✗ {text}[/]"


def _print_rows(console: Any, rows: Sequence["Row"]) -> None:
    asked = rows[0].scores["all"][0].asked
    table = terminal.table(
        f"{asked} held-out scenes, one question each: right answers in %, 95 % interval",
        *("pictures shown as", "tokens", "all questions", "coarse", "fine"),
    )
    for row in rows:
        cells = []
        for group in ("all", "coarse", "fine"):
            low, high = row.interval(group)
            cells.append(f"{100 * row.accuracy(group):.0f} [dim]({100 * low:.0f} to {100 * high:.0f})[/]")
        table.add_row(row.label, f"{row.tokens:.0f}", *cells)
    console.print(table)


def _print_files(console: Any, folder: pathlib.Path, files: Sequence[pathlib.Path], took: float) -> None:
    from vila_jax import assets

    names = ", ".join(path.name for path in files)
    console.print(f"\nwrote to {terminal.plain(str(folder))}/: {names}", soft_wrap=True)
    picture = folder / "scene_1.png"
    ask = ["vila-jax", "ask", str(assets.nano()), "--image", str(picture), "--prompt", "How many shapes are there?"]
    console.print(f"ask it yourself: {terminal.plain(shlex.join(ask))}", soft_wrap=True)
    console.print(f"{took:.0f} s; compiled programs are kept, the next time is faster", style="dim")


def _facts(
    exhibits: Sequence["Exhibit"], rows: Sequence["Row"], files: Sequence[pathlib.Path], took: float
) -> dict[str, Any]:
    """What `--json` prints."""
    scenes = []
    for exhibit in exhibits:
        asked = [
            {
                "question": item.question.text,
                "truth": item.question.answer,
                "full": _reply_facts(full),
                "hired": _reply_facts(hired),
            }
            for item, full, hired in zip(exhibit.items, *exhibit.replies, strict=True)
        ]
        scenes.append({"questions": asked})
    return {
        "scenes": scenes,
        "examined": rows[0].scores["all"][0].asked,
        "rows": [row.to_json() for row in rows],
        "files": [str(path) for path in files],
        "seconds": took,
    }


def _reply_facts(reply: "Reply") -> dict[str, Any]:
    return {"text": reply.text, "right": reply.right, "tokens": reply.tokens}
