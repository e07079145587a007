"""Tasks that the embedded model is shown by examples alone, in forms that its training held out."""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from eval.report import circumstances, insert
from train.scenes.fewshot import COLOR, END, HELD_OUT, KIND, Form, draw_form, written
from vila_jax import assets
from vila_jax.cli.cache import enable_compile_cache
from vila_jax.exam.items import interval
from vila_jax.infer.likelihood import in_order, make_probes
from vila_jax.model import Model, from_pretrained
from vila_jax.scenes import SINGLE, Scene, SceneObject, draw_scene
from vila_jax.scenes.world import COLORS, FINE_THINGS, SHAPES

console = Console(stderr=True, highlight=False)

SHOTS = (0, 2, 4)
"""Examples before the question."""

COMMAND = "python -m eval fewshot"

_LONGEST = 6  # tokens of the longest form and its end
_STREAM = 3  # of random draws; scenes and the exam have others


@dataclasses.dataclass(frozen=True)
class Task:
    """Some examples, and one more picture.

    Attributes:
      held_out: whether the form is one of those that no training document has.
      scenes: the examples, and the one that is asked about at the end.
    """

    form: Form
    held_out: bool
    scenes: tuple[Scene, ...]

    @property
    def asked(self) -> SceneObject:
        """The thing that is asked about."""
        return self.scenes[-1].objects[0]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was said to a task."""

    task: Task
    shots: int
    text: str

    @property
    def words(self) -> list[str]:
        """Up to the end of the example."""
        return self.text.lower().partition(END)[0].split()

    @property
    def right(self) -> bool:
        """Whether it says what there is, in the form of the examples."""
        return [*self.words, END] == written(self.task.form, self.task.asked).split()

    @property
    def in_form(self) -> bool:
        """Whether it is in the form of the examples, whatever it says."""
        return form_of(self.words) == self.task.form


def form_of(words: Sequence[str]) -> Form:
    """The form that some words are in."""
    slots = dict.fromkeys(COLORS, COLOR) | dict.fromkeys((*SHAPES, *FINE_THINGS), KIND)
    return tuple(slots.get(word, word) for word in words)


def draw_tasks(count: int) -> list[Task]:
    """As many tasks in forms of training as in held-out ones, `count` in all, about held-out scenes."""

    def tasks() -> Iterator[Task]:
        for number in range(count):
            rng = np.random.default_rng((number, _STREAM))
            held_out = number % 2 == 0
            form = HELD_OUT[number // 2 % len(HELD_OUT)] if held_out else _with_both(rng)
            first = number * (max(SHOTS) + 1)
            seeds = range(first, first + max(SHOTS) + 1)
            yield Task(form, held_out, tuple(draw_scene(seed, split="test", difficulty=SINGLE) for seed in seeds))

    return list(tasks())


def _with_both(rng: np.random.Generator) -> Form:
    """A form of training with both slots, as the held-out ones have."""
    while True:
        form = draw_form(rng)
        if {COLOR, KIND} <= set(form):
            return form


def ask(model: Model, tasks: Sequence[Task], shots: int, batch: int = 16) -> list[Answer]:
    """Greedy answers, given so many of the examples.

    Args:
      batch: tasks at a time.
    """
    answers: list[Answer] = []
    for chosen, rows in _batches(tasks, batch):
        results = model.generate(*_shown_to(model, rows, shots), budget=None, max_new_tokens=_LONGEST)
        assert isinstance(results, list)
        answers += [Answer(task, shots, result.text) for task, result in zip(chosen, results, strict=False)]
    return answers


def losses(model: Model, tasks: Sequence[Task], shots: int, batch: int = 16) -> list[float]:
    """Of every task the loss of a token of the right answer, in nats, given so many of the examples.

    Args:
      batch: tasks at a time.
    """
    found: list[float] = []
    for chosen, rows in _batches(tasks, batch):
        shown = zip(*_shown_to(model, rows, shots), strict=True)
        requests = [model.request(prompt, pictures, budget=None) for prompt, pictures in shown]
        right = [model.tokenizer.encode(written(task.form, task.asked), add_special_tokens=False) for task in rows]
        probes = make_probes(requests, right)
        likelihoods = in_order(probes, model.engine.log_likelihoods(probes, budget=None))
        found += [-one.total / len(one.log_probs) for one in likelihoods[: len(chosen)]]
    return found


def _batches(tasks: Sequence[Task], batch: int) -> Iterator[tuple[Sequence[Task], list[Task]]]:
    """So many tasks at a time, and the same filled up to a batch, so that all have one shape."""
    for start in range(0, len(tasks), batch):
        chosen = tasks[start : start + batch]
        yield chosen, [chosen[min(i, len(chosen) - 1)] for i in range(batch)]


def _shown_to(model: Model, tasks: Sequence[Task], shots: int) -> tuple[list[str], list[list[Image.Image]]]:
    """Prompts and their pictures."""
    mark = model.form.tokenizer.image_token
    pictures = [[Image.fromarray(scene.image) for scene in _shown(task, shots)] for task in tasks]
    return [_prompt(task, shots, mark) for task in tasks], pictures


def _shown(task: Task, shots: int) -> tuple[Scene, ...]:
    return task.scenes[len(task.scenes) - 1 - shots :]


def _prompt(task: Task, shots: int, mark: str) -> str:
    """As `train.data.documents` writes a document that breaks off behind its last picture."""
    examples = [written(task.form, scene.objects[0]) for scene in _shown(task, shots)[:-1]]
    return "".join(mark + example for example in examples) + mark


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval fewshot`."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="another checkpoint (default: the embedded one)")
    parser.add_argument("--tasks", type=int, default=800, metavar="N", help="half in held-out forms (default: 800)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="tasks at a time (default: 16)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/nano"),
        metavar="DIR",
        help="folder of fewshot.json; the table goes to the page DIR.md (default: docs/nano)",
    )


def run(args: argparse.Namespace) -> int:
    """Asks, and writes the JSON file and the table."""
    start = time.perf_counter()
    enable_compile_cache()
    folder = args.model or assets.nano()
    model = from_pretrained(str(folder))
    tasks = draw_tasks(args.tasks)
    rows = [row for shots in SHOTS for row in _rows(ask(model, tasks, shots, args.batch), shots)]
    rows.sort(key=lambda row: not row["held_out"])
    command = COMMAND + (" --model DIR" if args.model else "") + (f" --tasks {args.tasks}" if args.tasks != 800 else "")
    facts = circumstances(folder, command, time.perf_counter() - start) | {"rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "fewshot.json").write_text(json.dumps(facts, indent=1) + "\n")
    page = args.out.with_name(f"{args.out.name}.md")
    insert(page, _section(facts), by=COMMAND)
    console.print(f"wrote {args.out}/fewshot.json and the table of {page}", soft_wrap=True)
    return 0


def _rows(answers: Sequence[Answer], shots: int) -> list[dict[str, Any]]:
    rows = []
    for held_out in (True, False):
        own = [answer for answer in answers if answer.task.held_out == held_out]
        counts = {name: sum(getattr(answer, name) for answer in own) for name in ("right", "in_form")}
        rows.append({"held_out": held_out, "shots": shots, "asked": len(own), **counts})
    return rows


def _section(facts: dict[str, Any]) -> str:
    def share(row: dict[str, Any], name: str) -> str:
        low, high = interval(row[name] / row["asked"], row["asked"])
        return f"{100 * row[name] / row['asked']:.1f} ({100 * low:.1f} to {100 * high:.1f})"

    lines = [
        f"| {'held out' if row['held_out'] else 'of training'} | {row['shots']} | {row['asked']} "
        f"| {share(row, 'right')} | {share(row, 'in_form')} |"
        for row in facts["rows"]
    ]
    made = (
        f"Made by `{facts['command']}` on {facts['date']} on {facts['machine']} (weights "
        f"{facts['weights_sha256'][:12]}). In %, in parentheses the 95 % interval over the tasks."
    )
    head = "| forms | examples | tasks | right | in the form of the examples |\n|:--|--:|--:|--:|--:|"
    return "\n".join([made, "", head, *lines])
