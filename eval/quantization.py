"""What fewer bits cost: logits, greedy answers and exam of `nano`, and logits of random weights of a larger shape."""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eval.logit_errors import Errors, compare, greedy_answers, read_answers
from eval.nano import console
from eval.report import circumstances, insert
from vila_jax import assets
from vila_jax.bench import floors
from vila_jax.bench.memory import weight_bytes
from vila_jax.bench.presets import preset
from vila_jax.bench.subject import Batch, Case, Subject, model_subject, preset_subject
from vila_jax.cli import arguments, units
from vila_jax.cli.cache import enable_compile_cache
from vila_jax.exam.examiner import LONGEST_ANSWER, Examiner
from vila_jax.exam.items import Item, draw_exam, interval, score
from vila_jax.infer.layout import Request
from vila_jax.model import Model, from_pretrained
from vila_jax.quantize import Quantization

SPECS = ("int8", "fp8", "int4", "kv=int8", "int8,kv=int8", "int4,kv=int8")
_BATCH = 16
_PUBLISHED = ("llava-1.5-7b", "vila1.5-3b", "nvila-8b")
_BY = "python -m eval quantization"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval quantization`."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="another checkpoint of its kind than nano")
    parser.add_argument(
        "--scenes", type=arguments.whole(1), default=1000, metavar="N", help="of the exam (default: 1000)"
    )
    parser.add_argument(
        "--answers", type=arguments.whole(1), default=128, metavar="N", help="whose logits are read (default: 128)"
    )
    parser.add_argument("--preset", default="mid-0.3b", metavar="P", help="of random weights (default: mid-0.3b)")
    parser.add_argument("--new-tokens", type=arguments.whole(2), default=17, metavar="N", help="of its answers")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/quantization"),
        metavar="DIR",
        help="folder of accuracy.json; the tables go to the page DIR.md (default: docs/quantization)",
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found of one spec; None is the model as it is.

    Attributes:
      bytes: of all weights.
      errors: against the model as it is.
      right: share of the exam's questions that are answered right.
    """

    spec: str | None
    bytes: int
    errors: Errors | None = None
    right: float | None = None


def run(args: argparse.Namespace) -> int:
    """Measures, and writes the JSON file and the tables."""
    start = time.perf_counter()
    enable_compile_cache()
    folder, items = args.model or assets.nano(), draw_exam(args.scenes)
    nano = list(_nano_rows(folder, items, args.answers))
    random = list(_random_rows(args.preset, args.new_tokens))
    facts = circumstances(folder, _command(args), time.perf_counter() - start)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = {name: [dataclasses.asdict(row) for row in own] for name, own in (("nano", nano), (args.preset, random))}
    (args.out / "accuracy.json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    page = args.out.with_name(f"{args.out.name}.md")
    insert(page, _section(args, facts, nano, random), by=_BY)
    console.print(f"wrote {args.out}/accuracy.json and the tables of {page}", soft_wrap=True)
    return 0


def _nano_rows(folder: Path, items: Sequence[Item], count: int) -> Iterator[Row]:
    exact, answers = None, None
    for spec in (None, *SPECS):
        console.print(f"nano, {spec or 'as it is'}")
        model = from_pretrained(str(folder), quantize=_forced(spec))
        requests = [_request(model, item) for item in items[:count]]
        if answers is None:
            answers = _answers(model.engine, requests, LONGEST_ANSWER, model.end_tokens)
        found = _logits(model_subject(model, "nano"), requests, answers)
        exact = found if exact is None else exact
        right = score(Examiner(model).budgeted(items, None)).accuracy
        yield Row(spec, _bytes(model.config.vlm, model.engine.planner.dtype, spec), compare(exact, found), right)


def _random_rows(name: str, new_tokens: int) -> Iterator[Row]:
    exact, answers = None, None
    for spec in (None, *SPECS):
        console.print(f"{name}, {spec or 'as it is'}")
        subject = preset_subject(name, "float32", _forced(spec))
        batch = Batch(subject, Case(4, None, 64, new_tokens, subject.picture_edge))
        requests = batch.requests(batch.pictures())
        if answers is None:
            answers = _answers(subject.engine, requests, new_tokens)
        found = _logits(subject, requests, answers)
        exact = found if exact is None else exact
        yield Row(spec, _bytes(subject.config.vlm, "float32", spec), compare(exact, found))


def _answers(engine: Any, requests: Sequence[Request], new_tokens: int, ends: Sequence[int] = ()) -> list[list[int]]:
    return [own for part in _batches(requests) for own in greedy_answers(engine, part, new_tokens, ends)]


def _logits(subject: Subject, requests: Sequence[Request], answers: Sequence[Sequence[int]]) -> list[Any]:
    """At every place of the answers, batch by batch."""
    kv = None if subject.quantization is None else subject.quantization.kv
    parts = zip(_batches(requests), _batches(answers), strict=True)
    found = [read_answers(subject.engine, own, said, kv or subject.dtype) for own, said in parts]
    return [logits for part in found for logits in part]


def _batches(sequence: Sequence[Any]) -> list[Sequence[Any]]:
    return [sequence[start : start + _BATCH] for start in range(0, len(sequence), _BATCH)]


def _request(model: Model, item: Item) -> Request:
    picture = Image.fromarray(item.scene.image)
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": item.question.text}]
    return model.request(messages=[{"role": "user", "content": parts}])


def _forced(spec: str | None) -> Quantization | None:
    """Accuracy is the same on every device."""
    return None if spec is None else Quantization.parse(f"{spec},force")


def _bytes(config: Any, dtype: str, spec: str | None) -> int:
    itemsize = 4 if dtype == "float32" else 2
    return sum(weight_bytes(config, itemsize, _forced(spec)).values())


def _command(args: argparse.Namespace) -> str:
    """The command that makes these numbers again, as far as it is not the default; without folders of this machine."""
    options = {"scenes": 1000, "answers": 128, "preset": "mid-0.3b", "new_tokens": 17}
    given = {name: getattr(args, name) for name in options}
    changed = [f"--{name.replace('_', '-')} {given[name]}" for name in options if given[name] != options[name]]
    return " ".join([_BY, *(["--model DIR"] if args.model else []), *changed])


def _section(args: argparse.Namespace, facts: dict[str, Any], nano: Sequence[Row], random: Sequence[Row]) -> str:
    """What the page says between its marks."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    made = (
        f"Made by `{facts['command']}` on {facts['date']} in {facts['seconds'] / 60:.0f} min on {facts['machine']} "
        f"({versions}; weights of nano {facts['weights_sha256'][:12]}), computed in float32."
    )
    asked = (
        f"`nano`: {args.answers} answers to questions about drawn scenes, and the exam of {args.scenes:,} (95 % "
        f"interval in parentheses). {_spread(nano)}"
    )
    shapes = (
        f"Random weights of the shapes of `{args.preset}`: 4 answers of {args.new_tokens} tokens. {_spread(random)} "
        "Random logits lie close together, so that the likeliest token changes sooner than that of a trained model."
    )
    return "\n\n".join([made, asked, _table(nano, args.scenes), shapes, _table(random, None), *_bytes_of_a_step()])


def _spread(rows: Sequence[Row]) -> str:
    assert rows[0].errors is not None
    return f"Its logits have a standard deviation of {rows[0].errors.spread:.3g}."


def _table(rows: Sequence[Row], questions: int | None) -> str:
    head = ["", "weights", "logit error, mean", "largest", "KL, nats", "same token, %", "same answer, %"]
    lines = [[*head, "exam, %"] if questions else head]
    lines.append([":--", *["--:"] * (len(lines[0]) - 1)])
    for row in rows:
        assert row.errors is not None
        own = row.errors
        cells = [f"`{row.spec}`" if row.spec else "float32", units.size(row.bytes), f"{own.mean:.2g}"]
        cells += [f"{own.largest:.2g}", f"{own.divergence:.2g}", f"{100 * own.tokens:.1f}", f"{100 * own.answers:.1f}"]
        if questions and row.right is not None:
            low, high = interval(row.right, questions)
            cells.append(f"{100 * row.right:.1f} ({100 * low:.1f} to {100 * high:.1f})")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _bytes_of_a_step() -> list[str]:
    """What a decode step reads, counted from published shapes."""
    specs = (None, "int8", "int8,kv=int8", "int8,parts=decoder+head,kv=int8", "int4", "int4,kv=int8")
    lines = [["", "batch", *(f"`{spec}`" if spec else "bfloat16" for spec in specs)]]
    lines.append([":--", *["--:"] * (len(specs) + 1)])
    for name in _PUBLISHED:
        config = preset(name).vlm
        for batch in (1, 32):
            sizes = floors.Sizes(batch=batch, tiles=1, text=64, visual=config.tokens_per_tile, itemsize=2)
            read = [
                floors.decode_work(config, dataclasses.replace(sizes, quantization=_forced(spec)), 64).bytes
                for spec in specs
            ]
            cells = [f"{units.size(int(own))} ({read[0] / own:.2f} x)" for own in read]
            lines.append([f"`{name}`", str(batch), units.size(int(read[0])), *cells[1:]])
    text = (
        "What a decode step reads at least, counted (64 tokens of text, all visual tokens of one tile, 64 generated); "
        "in parentheses how many times less than in bfloat16: the most that can be gained where reading is all."
    )
    return [text, "\n".join(f"| {' | '.join(cells)} |" for cells in lines)]
