"""Pictures of wrong answers, with the tokens that the budget kept."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from eval.runs.folder import write_json
from eval.runs.items import Item
from eval.runs.score import load
from vila_jax.budgets import Budget, Dropper
from vila_jax.cli.overlay import Choice, draw
from vila_jax.model import Model
from vila_jax.text.messages import collect_images
from vila_jax.vision.open import open_image

FOLDER = "failures"
_WIDTH, _COLORS = 900, 128  # of drawings, of which a report may hold dozens
_RIGHT = 0.5
"""From this score on a sample counts as right."""


def draw_failures(
    model: Model,
    items: Callable[[], Iterator[Item]],
    folder: Path,
    baseline: Path,
    budget: Budget | None,
    count: int,
) -> list[Path]:
    """Draws the first wrong answers of a run; first of all those that the baseline has right.

    Writes `failures/INDEX.png` and `failures/failures.json`, which says what was asked and answered.

    Args:
      items: the questions of the run; only the last picture of each, which is asked about, is drawn.
      baseline: the folder of the run that the others are compared with.
    """
    run, scores = load(folder), _scores(baseline)
    wrong = [
        record
        for record, mark in zip(run.placed, run.marks, strict=True)
        if record.error is None and record.references and mark.score < _RIGHT
    ]
    wrong.sort(key=lambda record: scores.get(record.index, 0.0) < _RIGHT)  # stable: else by index
    chosen = {record.index: record for record in wrong[:count]}
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    notes = []
    for item in items() if chosen else ():
        if (record := chosen.get(item.index)) is None:
            continue
        drawn = _draw(model, item, budget)
        if drawn is not None:
            drawn.thumbnail((_WIDTH, _WIDTH))
            drawn.quantize(_COLORS).save(place / f"{item.index}.png", optimize=True)
        notes.append(
            {
                "id": item.id,
                "question": item.question,
                "answer": record.answer,
                "references": list(record.references),
                "right_in_baseline": scores.get(item.index, 0.0) >= _RIGHT,
                "picture": None if drawn is None else f"{item.index}.png",
            }
        )
        if len(notes) == len(chosen):
            break
    write_json(place / "failures.json", notes)
    return sorted(place.glob("*.png"))


def _draw(model: Model, item: Item, budget: Budget | None) -> Image.Image | None:
    """The last picture with its tokens; None where there is none, or where tokens are no patches."""
    sources = collect_images(item.messages)
    step = None if budget is None else budget.step("decoder")
    if not sources or (step is not None and not isinstance(step.decoder_method, Dropper)):
        return None
    content = [{"type": "image", "image": sources[-1]}, item.messages[-1]["content"][-1]]
    request = model.request(messages=[{"role": "user", "content": content}], budget=budget)
    [image] = request.images
    engine = model.engine
    if budget is not None and step is not None and not budget.is_full:
        chosen = engine.left(request, budget=budget)
    else:
        chosen = engine.chosen(image, budget=budget)
    picture = open_image(sources[-1])
    full = model.count_tokens((picture.height, picture.width), None)
    tokens = full if engine.planner.effective(budget) is None else len(chosen.indices)
    name = "all tokens" if budget is None else str(budget)
    return draw(model.preprocessor, [Choice(name, image, chosen, tokens, full)], f"sample {item.id}")


def _scores(folder: Path) -> dict[int, float]:
    """The score of every sample of a run, by its index."""
    lines = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["index"]: row["score"] for row in map(json.loads, lines) if row["score"] is not None}
