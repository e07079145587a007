"""What budgets cost: counts from the programs, and times from interleaved repeats of the same request."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from PIL import Image

from vila_jax.bench.budgets.rows import Cost, Row, Spread
from vila_jax.bench.meter import Call, Meter, Program, metered
from vila_jax.errors import VilaError
from vila_jax.infer.vision import selection
from vila_jax.model import Model

OnStep = Callable[[str], None]

_TOWER, _VISUAL, _PREFILL, _DECODE = "vision tower", "visual tokens", "prefill", "decode"
_SELECTION = "selection"


@dataclasses.dataclass(frozen=True)
class Load:
    """The request that is timed: a batch of one picture and one question each.

    Attributes:
      new_tokens: generated per row, the first included; end tokens do not end a row.
    """

    pictures: Sequence[Image.Image]
    question: str
    new_tokens: int

    def messages(self) -> list[list[dict[str, Any]]]:
        """A conversation per picture."""
        text = {"type": "text", "text": self.question}
        return [[{"role": "user", "content": [{"type": "image", "image": own}, text]}] for own in self.pictures]


@dataclasses.dataclass(frozen=True)
class _Turn:
    """One repeat: seconds to the first token, tokens per second, visual tokens of the rows; of every program by name,
    seconds of its first call and what is known of it."""

    first_token: float
    decode_rate: float
    tokens: list[int]
    seconds: dict[str, float]
    programs: dict[str, Program]


def measure_costs(
    model: Model, rows: Sequence[Row], load: Load, repeats: int, on_step: OnStep = lambda text: None
) -> list[Row]:
    """Times the cases of all rows in turn, `repeats` times, after one round that compiles and is not counted.

    A case that the model refuses becomes a row that says why. Programs are compiled once, though each row counts the
    compilation of all that it uses.
    """
    refused: dict[str, str] = {}
    turns: dict[str, list[_Turn]] = {}
    with metered(model.engine) as meter:
        for turn in range(repeats + 1):
            for case in (row.case for row in rows if row.case.name not in refused):
                on_step(f"{f'repeat {turn} of {repeats}' if turn else 'compiling'}: {case.name}")
                try:
                    took = _take_turn(model, meter, case.budget, load)
                except VilaError as error:
                    refused[case.name] = str(error)
                    continue
                if turn:
                    turns.setdefault(case.name, []).append(took)
    return [
        Row(row.case, refused=refused[row.case.name])
        if row.case.name in refused
        else dataclasses.replace(row, refused=None, cost=_cost(turns[row.case.name], len(load.pictures)))
        for row in rows
    ]


def _take_turn(model: Model, meter: Meter, budget: str | None, load: Load) -> _Turn:
    """The request as a user sends it, and once more with its programs watched."""
    options: dict[str, Any] = {"budget": budget, "max_new_tokens": load.new_tokens, "ignore_eos": True}
    messages = load.messages()
    start = time.perf_counter()
    answers = model.answers(messages=messages, **options)
    chunks = iter(answers)
    next(chunks)
    first_token = time.perf_counter() - start
    for _ in chunks:
        pass
    results = answers.results()
    further = sum(len(result.token_ids) - 1 for result in results)
    with meter.watch() as calls:
        model.generate(messages=messages, **options)
        _select(meter, calls)
    first_calls = {call.name: call for call in reversed(calls)}
    return _Turn(
        first_token=first_token,
        decode_rate=further / results[0].timings.decode,
        tokens=[result.usage.visual_tokens_kept for result in results],
        seconds={name: call.seconds for name, call in first_calls.items()},
        programs={name: call.program for name, call in first_calls.items()},
    )


def _select(meter: Meter, calls: Sequence[Call]) -> None:
    """Runs the choice of tokens, which is otherwise one program with their projection, by itself."""
    [call] = [call for call in calls if call.name == _VISUAL]
    encoded, scales, pictures, *_ = call.args
    if pictures is not None:
        meter.call(_SELECTION, selection, encoded, scales, pictures, spec=call.options["spec"])


def _cost(turns: Sequence[_Turn], rows: int) -> Cost:
    programs, tokens = turns[0].programs, turns[0].tokens
    flops = {name: program.flops / rows for name, program in programs.items()}
    cache = jax.tree.leaves(programs[_PREFILL].result.cache)

    def spread(name: str) -> Spread:
        return Spread.of([turn.seconds[name] for turn in turns])

    chosen = flops.get(_SELECTION, 0.0)
    return Cost(
        tokens_mean=statistics.fmean(tokens),
        tokens_max=max(tokens),
        tower_flops=flops[_TOWER],
        selector_flops=chosen,
        projector_flops=flops[_VISUAL] - chosen,
        prefill_flops=flops[_PREFILL],
        decode_flops=flops[_DECODE],
        kv_bytes=sum(part.size * part.dtype.itemsize for part in cache) / rows,
        compile_time=sum(program.compile_time for name, program in programs.items() if name != _SELECTION),
        tower=spread(_TOWER),
        selector=spread(_SELECTION) if _SELECTION in programs else None,
        prefill=spread(_PREFILL),
        first_token=Spread.of([turn.first_token for turn in turns]),
        decode_rate=Spread.of([turn.decode_rate for turn in turns]),
    )
