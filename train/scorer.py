"""`python -m train scorer --out FOLDER`: a token scorer for a model, which is left as it is otherwise.

The scorer is distilled from the model's own decoder (`train/teacher.py`): of every patch it learns, from what the
projector takes of it, how much the answers to all questions about the picture attend to it. A budget `learned:0.2` then
needs neither the decoder nor the question to choose. What the projector takes and the targets of all pictures are
computed once and kept in memory.

Without --pictures, pictures and questions are drawn (`vila_jax/scenes`), and their right answers are what attention is
read from; with it, every picture is asked every line of --prompts, and the model's own greedy answers are.
"""

import argparse
import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from PIL import Image
from rich.console import Console

from train.distil import Recipe, compare, fit
from train.scenes.conversations import choose_questions
from train.teacher import Lesson, ask, lesson
from vila_jax import assets
from vila_jax.errors import ConfigError
from vila_jax.heap import keep_freed_memory
from vila_jax.hf.add_scorer import add_scorer
from vila_jax.hf.writing import check_request
from vila_jax.model import Model, from_pretrained
from vila_jax.nn.params import dotted
from vila_jax.scenes import draw_scene
from vila_jax.scenes.world import Split
from vila_jax.vision.open import open_image

console = Console(stderr=True, markup=False, highlight=False)

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_PART = 0.2


class Example(NamedTuple):
    """A picture, what is asked about it, and the answers as token ids without the end token."""

    picture: Image.Image
    questions: list[str]
    answers: list[list[int]]


def main(argv: list[str]) -> None:
    """Trains a scorer, and writes the model with it.

    Raises:
      VilaError: the model, the pictures or the recipe are wrong.
    """
    args = _arguments().parse_args(argv)
    keep_freed_memory()
    _run(args)


def _arguments() -> argparse.ArgumentParser:
    recipe = Recipe()
    parser = argparse.ArgumentParser(prog="python -m train scorer", description=__doc__)
    parser.add_argument("--model", default=str(assets.nano()), help="a folder or Hub id (default: the embedded model)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model with its scorer")
    parser.add_argument("--force", action="store_true", help="replace the checkpoint in that folder")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="learn from these instead of drawn scenes")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="with --pictures: a question a line")
    parser.add_argument("--answer-tokens", type=int, default=32, metavar="N", help="longest own answer (default: 32)")
    parser.add_argument("--scenes", type=int, default=2000, metavar="N", help="to draw, held-out ones included")
    parser.add_argument("--questions", type=int, default=8, metavar="N", help="about a scene (default: 8)")
    parser.add_argument("--held-out", type=float, default=0.1, metavar="PART", help="of the pictures (default: 0.1)")
    parser.add_argument("--layers", metavar="I,J,..", help="of the decoder, from 0 (default: all)")
    parser.add_argument("--hidden", type=int, default=recipe.hidden, metavar="N", help="hidden width (default: 64)")
    parser.add_argument("--steps", type=int, default=recipe.steps, metavar="N", help="training steps (default: 3000)")
    parser.add_argument("--batch", type=int, default=recipe.batch, metavar="N", help="pictures a step (default: 16)")
    parser.add_argument("--learning-rate", type=float, default=recipe.learning_rate, metavar="X", help="peak")
    parser.add_argument("--seed", type=int, default=recipe.seed, metavar="N")
    return parser


def _run(args: argparse.Namespace) -> None:
    check_request(args.out, "hf", None, args.force)  # before hours are spent
    recipe = _recipe(args)
    model = from_pretrained(args.model)
    layers = _layers(args.layers, model.config.vlm.decoder.num_layers)
    learnt, held_out = _lessons(model, _examples(args, model), layers)
    scorer = fit(learnt, recipe, _report_every(recipe.steps))
    found = ", ".join(f"{name} {rank.recall:.3f}" for name, rank in compare(scorer, held_out, _PART).items())
    where = f"of the most attended {_PART:.0%} on {len(held_out)} held-out pictures"
    console.print(f"recall {where}: {found}", soft_wrap=True)
    weights = {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(scorer))}
    written = add_scorer(model.checkpoint, weights, args.out, overwrite=args.force)
    console.print(f"wrote {written.folder}", soft_wrap=True)


def _recipe(args: argparse.Namespace) -> Recipe:
    counts = {name: getattr(args, name) for name in ("hidden", "steps", "batch", "questions", "answer_tokens")}
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"got {count}", where=f"--{name.replace('_', '-')}", fix="Give at least 1.")
    if not 0 < args.held_out < 1:
        raise ConfigError(f"got {args.held_out}", where="--held-out", fix="Give a fraction between 0 and 1.")
    return Recipe(args.hidden, args.steps, args.batch, args.learning_rate, seed=args.seed)


def _layers(text: str | None, depth: int) -> tuple[int, ...]:
    """Layers of the decoder by their numbers."""
    if text is None:
        return tuple(range(depth))
    parts = [part.strip() for part in text.split(",")]
    layers = tuple(sorted({int(part) for part in parts if part.isdecimal()}))
    if not all(part.isdecimal() for part in parts) or layers[-1] >= depth:
        fix = f"Give numbers from 0 to {depth - 1}, with commas between them."
        raise ConfigError(f"got {text!r}", where="--layers", fix=fix)
    return layers


class _Split(NamedTuple):
    """Examples to learn from, and held-out ones; both are made while they are taken."""

    learnt: Iterable[Example]
    held_out: Iterable[Example]
    total: int


def _examples(args: argparse.Namespace, model: Model) -> _Split:
    """What the arguments ask for.

    Raises:
      ConfigError: there are fewer than two pictures, or no questions.
    """
    if (args.pictures is None) != (args.prompts is None):
        raise ConfigError("one was given without the other", where="--pictures, --prompts", fix="Give both or neither.")
    if args.pictures is None:
        total, held = args.scenes, _held_out(args.scenes, args.held_out, "--scenes")
        return _Split(_drawn(args, model, total - held, "train"), _drawn(args, model, held, "test"), total)
    paths = sorted(path for path in args.pictures.rglob("*") if path.suffix.lower() in _PICTURES)
    held = _held_out(len(paths), args.held_out, str(args.pictures))
    questions = _read_prompts(args.prompts)
    paths = [paths[i] for i in np.random.default_rng(args.seed).permutation(len(paths))]
    shown = (_answered(model, path, questions, args.answer_tokens) for path in paths)
    return _Split(itertools.islice(shown, len(paths) - held), shown, len(paths))


def _held_out(total: int, part: float, where: str) -> int:
    if total < 2:
        raise ConfigError(f"there are {total} pictures", where=where, fix="Give two at least, one of them held out.")
    return min(max(round(part * total), 1), total - 1)


def _read_prompts(path: Path) -> list[str]:
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the questions cannot be read: {error}", where=str(path)) from error
    if not prompts:
        raise ConfigError("there are no questions", where=str(path), fix="Write one a line.")
    return prompts


def _drawn(args: argparse.Namespace, model: Model, count: int, split: Split) -> Iterator[Example]:
    """Drawn scenes of the seeds 0, 1, 2, ... of a split, with right answers."""
    rng = np.random.default_rng(args.seed)
    for seed in range(count):
        scene = draw_scene(seed, split=split)
        chosen = choose_questions(scene, args.questions, rng)
        answers = [model.tokenizer.encode(question.answer, add_special_tokens=False) for question in chosen]
        yield Example(Image.fromarray(scene.image), [question.text for question in chosen], answers)


def _answered(model: Model, path: Path, questions: list[str], longest: int) -> Example:
    """A picture, and what the model says about it."""
    picture = open_image(path)
    conversations = [ask(question, picture) for question in questions]
    said = model.generate(messages=conversations, budget=None, max_new_tokens=longest)
    assert isinstance(said, list)
    ends = [one.finish_reason == "stop" for one in said]
    answers = [list(one.token_ids[: len(one.token_ids) - end]) for one, end in zip(said, ends, strict=True)]
    return Example(picture, questions, answers)


def _lessons(model: Model, examples: _Split, layers: tuple[int, ...]) -> tuple[list[Lesson], list[Lesson]]:
    """All lessons, learnt and held out."""
    start = time.perf_counter()

    def taught(parts: Iterable[Example]) -> list[Lesson]:
        return [lesson(model, *example, layers) for example in parts]

    found = taught(examples.learnt), taught(examples.held_out)
    console.print(f"{examples.total} pictures in {time.perf_counter() - start:.0f} s")
    return found


def _report_every(steps: int) -> Any:
    """Prints the mean loss of every tenth of the steps."""
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if len(losses) == max(steps // 10, 1) or step == steps:
            console.print(f"step {step}/{steps}  loss {np.mean(losses):.4f}")
            losses.clear()

    return on_step
