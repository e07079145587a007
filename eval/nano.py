"""The whole exam of the embedded model: every way of showing pictures, every fraction of tokens, every seed."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console

from eval.report import circumstances, insert
from vila_jax import assets
from vila_jax.cli.cache import enable_compile_cache
from vila_jax.exam.chart import draw_chart
from vila_jax.exam.examiner import Examiner, Setting, settings
from vila_jax.exam.items import Item, Reply, draw_exam
from vila_jax.exam.results import LABELS, Row, markdown, tabulate
from vila_jax.model import from_pretrained

console = Console(stderr=True, highlight=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval nano`."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="another checkpoint (default: the embedded one)")
    parser.add_argument("--scenes", type=int, default=1000, metavar="N", help="held-out scenes (default: 1000)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of random tokens (default: 5)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="questions at a time (default: 32)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/nano"),
        metavar="DIR",
        help="folder of accuracy.json and accuracy.png; the tables go to the page DIR.md (default: docs/nano)",
    )


def run(args: argparse.Namespace) -> int:
    """Examines, and writes the JSON file, the chart and the tables."""
    start = time.perf_counter()
    enable_compile_cache()
    folder = args.model or assets.nano()
    model = from_pretrained(str(folder))
    args.out.mkdir(parents=True, exist_ok=True)
    items = draw_exam(args.scenes)
    rows = tabulate(_examine(model, items, settings(seeds=args.seeds), args.batch))
    facts = circumstances(folder, _command(args), time.perf_counter() - start)
    (args.out / "accuracy.json").write_text(json.dumps(_json(facts, items, rows), indent=1) + "\n")
    note = f"{len(items):,} held-out scenes, one question each; bars: 95 % interval over scenes. {facts['command']}"
    draw_chart(rows, args.out / "accuracy.png", title="nano: accuracy against visual tokens", note=note)
    page = args.out.with_name(f"{args.out.name}.md")
    insert(page, _section(facts, items, rows, args.out.name))
    console.print(f"wrote {args.out}/accuracy.json, {args.out}/accuracy.png and the tables of {page}", soft_wrap=True)
    return 0


def _examine(model: Any, items: Sequence[Item], asked: Sequence[Setting], batch: int) -> dict[Setting, list[Reply]]:
    columns = (bars.TextColumn("{task.description:<28}"), bars.BarColumn(), bars.MofNCompleteColumn())
    with bars.Progress(*columns, bars.TimeRemainingColumn(), console=console, transient=True) as shown:
        task = shown.add_task("", total=len(items) * len(asked))
        examiner = Examiner(model, batch=batch, on_batch=lambda answered: shown.advance(task, answered))
        replies = {}
        for setting in asked:
            shown.update(task, description=f"{LABELS[setting.method]}, {100 * setting.keep:g} %")
            replies[setting] = examiner.replies(items, setting)
    return replies


def _command(args: argparse.Namespace) -> str:
    """The command that makes these numbers again, as far as it is not the default; without folders of this machine."""
    options = {"scenes": 1000, "seeds": 5, "batch": 32}
    changed = [f"--{name} {getattr(args, name)}" for name, default in options.items() if getattr(args, name) != default]
    return " ".join(["python -m eval nano", *(["--model DIR"] if args.model else []), *changed])


def _json(facts: dict[str, Any], items: Sequence[Item], rows: Sequence[Row]) -> dict[str, Any]:
    shapes = [item.scene.image.shape[:2] for item in items]
    square = sum(height == width for height, width in shapes)
    return facts | {
        "split": "test",
        "scenes": len(items),
        "square_scenes": square,
        "rows": [row.to_json() for row in rows],
    }


def _section(facts: dict[str, Any], items: Sequence[Item], rows: Sequence[Row], folder: str) -> str:
    """The tables of the page, with what they were made by."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    made = (
        f"Made by `{facts['command']}` on {facts['date']} in {facts['seconds'] / 60:.0f} min on {facts['machine']} "
        f"({versions}; weights {facts['weights_sha256'][:12]}). Right answers in %, in parentheses the 95 % interval "
        f"over the {len(items):,} scenes; after ± the standard deviation over {max(row.seeds for row in rows)} seeds."
    )
    return f"{made}\n\n{markdown(rows)}\n![accuracy against visual tokens]({folder}/accuracy.png)"
