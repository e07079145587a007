"""Draws which patches of a picture a visual-token budget keeps, and writes the drawing to a PNG file.

Kept patches are bright, dropped ones dark; patches that are merged in one token have one colour, and an outline. Every
tile says how many tokens come from it. Several budgets are drawn below each other. The decoder is neither loaded nor
run, unless a budget works inside it: then --prompt is read, and what its last layer still sees is drawn.

A fraction such as 0.2 is taken of all patches of the tiles, while the totals in the drawing leave out padding: of a
picture that does not fill its tiles, more than a fifth of the real tokens is kept.
"""

import argparse
import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, terminal
from vila_jax.cli.loading import load_model
from vila_jax.cli.progress import Progress

if TYPE_CHECKING:
    from vila_jax.budgets import Budget
    from vila_jax.cli.overlay import Choice
    from vila_jax.hf.checkpoint import Checkpoint
    from vila_jax.infer.engine import Engine

SUMMARY = "draw which patches of a picture a budget keeps"
PROMPT = "Describe the picture."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax tokens`."""
    arguments.add_model(parser)
    parser.add_argument("--image", metavar="F", required=True, help="the picture")
    parser.add_argument(
        "--budget", metavar="SPEC", action="append", required=True, help="e.g. hired:0.2; repeat it for several"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", default=PROMPT, help=f"for budgets inside the decoder (default: {PROMPT!r})"
    )
    parser.add_argument("--out", metavar="PNG", required=True, type=_png, help="the file to write")
    arguments.add_dtype(parser)
    arguments.add_json(parser)


def _png(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"expected the name of a .png file, got {text!r}")
    return path


def run(args: argparse.Namespace) -> int:
    """Selects with every budget, and draws."""
    from vila_jax.assemble import make_preprocessor
    from vila_jax.cli.cache import enable_compile_cache
    from vila_jax.cli.overlay import Choice, draw
    from vila_jax.hf.checkpoint import open_checkpoint
    from vila_jax.infer.pictures import prepare
    from vila_jax.model import parse_budget
    from vila_jax.vision.open import open_image

    _check_writable(args.out)
    picture = open_image(args.image)
    checkpoint = open_checkpoint(args.model, revision=args.revision, era=args.era)
    budgets = [parse_budget(spec, checkpoint) for spec in args.budget]
    preprocessor = make_preprocessor(checkpoint)
    for budget in budgets:
        _check_drawable(budget)
    enable_compile_cache()
    choices = []
    with Progress(enabled=not args.json) as progress:
        model = None
        if any(_drops(budget) for budget in budgets):
            model = load_model(args, progress)
        engine = load_tower(checkpoint, args.dtype, progress) if model is None else model.engine
        progress.phase("preparing the picture")
        full = engine.planner.visual_count(preprocessor.geometry((picture.height, picture.width)), None)
        for budget in budgets:
            [image] = prepare(preprocessor, [picture], budget)
            if model is not None and budget is not None and _drops(budget):
                shown = [{"type": "image", "image": picture}, {"type": "text", "text": args.prompt}]
                request = model.request(messages=[{"role": "user", "content": shown}], budget=budget)
                chosen = engine.left(request, budget=budget)
            else:
                chosen = engine.chosen(image, budget=budget)
            tokens = full if engine.planner.effective(budget) is None else len(chosen.indices)
            choices.append(Choice(str(budget), image, chosen, tokens, full))
    name = pathlib.PurePath(args.model).name
    heading = f"{name} · {pathlib.PurePath(args.image).name} · {picture.width} x {picture.height} px"
    drawing = draw(preprocessor, choices, heading)
    _save(drawing, args.out)
    facts = {
        "out": str(args.out),
        "visual_tokens": full,
        "overview": choices[0].image.geometry.has_overview,
        "budgets": [_counts(choice) for choice in choices],
    }
    if args.json:
        terminal.print_json(facts)
    else:
        _print(facts)
    return 0


def _drops(budget: "Budget | None") -> bool:
    """Whether tokens leave inside the decoder."""
    return budget is not None and not budget.is_full and budget.step("decoder") is not None


def _check_drawable(budget: "Budget | None") -> None:
    from vila_jax.budgets import Dropper
    from vila_jax.errors import BudgetError

    step = None if budget is None else budget.step("decoder")
    if step is not None and not isinstance(step.decoder_method, Dropper):
        raise BudgetError(
            f"{step.method} leaves all tokens where they are, and every layer attends to others of them",
            where=f"--budget {budget}",
            fix="Draw a budget that takes tokens away.",
        )


def load_tower(checkpoint: "Checkpoint", dtype: str | None, progress: Progress) -> "Engine":
    """An engine that can select tokens and nothing else: the decoder's layers, most of a model, are left out."""
    import jax.numpy as jnp

    from vila_jax.hf.load import default_dtype, load_state
    from vila_jax.infer.engine import Engine

    config = checkpoint.config
    decoder = dataclasses.replace(config.vlm.decoder, num_layers=0, sliding_windows=())
    config = dataclasses.replace(config, vlm=dataclasses.replace(config.vlm, decoder=decoder))
    table, layers = checkpoint.table, "decoder.layers."
    kept = [name for name in checkpoint.locations if not (table.from_hf(name) or "").startswith(layers)]
    locations = {name: checkpoint.locations[name] for name in kept}
    checkpoint = dataclasses.replace(checkpoint, config=config, locations=locations)
    chosen = jnp.dtype(dtype or default_dtype())
    graphdef, state = load_state(checkpoint, dtype=chosen, on_tensor=progress.on_tensor)
    return Engine(graphdef, state, config, dtype=chosen.name, on_compile=progress.on_compile)


def _counts(choice: "Choice") -> dict[str, Any]:
    tiles = [0] * choice.image.geometry.num_tiles
    for tile in choice.chosen.tiles:
        tiles[int(tile)] += 1
    return {"budget": choice.name, "kept": choice.tokens, "kept_per_tile": tiles}


def _print(facts: dict[str, Any]) -> None:
    table = terminal.table(None, "budget", "tokens", "overview", "tiles")
    for row in facts["budgets"]:
        overview, *tiles = row["kept_per_tile"] if facts["overview"] else ["—", *row["kept_per_tile"]]
        cells = (f"{row['kept']:,} of {facts['visual_tokens']:,}", str(overview), " ".join(map(str, tiles)) or "—")
        table.add_row(row["budget"], *cells)
    console = terminal.stdout()
    console.print(table)
    console.print(f"\nwrote {terminal.plain(facts['out'])}", soft_wrap=True)


def _check_writable(path: pathlib.Path) -> None:
    """Before minutes of work rather than after them."""
    from vila_jax.errors import VilaError

    if not path.parent.is_dir():
        raise VilaError(f"there is no folder {path.parent}", where="--out", fix="Create it first.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise VilaError("it cannot be written", where=str(path), fix="Choose another file.")


def _save(drawing: Any, path: pathlib.Path) -> None:
    from vila_jax.errors import VilaError

    try:
        drawing.save(path, "PNG")
    except OSError as error:
        raise VilaError(f"it cannot be written: {error.strerror or error}", where=str(path)) from None
