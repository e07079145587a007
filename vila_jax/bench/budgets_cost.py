"""What budgets cost: counts from the programs, and times from interleaved repeats of the same request."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from PIL import Image

from vila_jax.bench.budgets_rows import Case, Cost, Row, Spread
from vila_jax.bench.meter import Call, Meter, metered
from vila_jax.errors import VilaError
from vila_jax.model import Model, parse_budget

OnStep = Callable[[str], None]

_TOWER, _SELECTION, _VISUAL, _PREFILL, _DECODE = "vision tower", "selection", "visual tokens", "prefill", "decode"


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
    """One repeat: seconds to the first token, tokens per second, visual tokens of the rows, and all watched calls."""

    first_token: float
    decode_rate: float
    tokens: list[int]
    calls: list[Call]


def measure_costs(
    model: Model, cases: Sequence[Case], load: Load, repeats: int, on_step: OnStep = lambda text: None
) -> list[Row]:
    """Times all cases in turn, `repeats` times, after one round that compiles and is not counted.

    A case that the model refuses is a row that says why. Programs are compiled once, though each row counts the
    compilation of all that it uses.
    """
    refused: dict[Case, str] = {}
    turns: dict[Case, list[_Turn]] = {}
    with metered(model) as meter:
        for turn in range(repeats + 1):
            for case in cases:
                if case in refused:
                    continue
                on_step(f"{f'repeat {turn} of {repeats}' if turn else 'compiling'}: {case.name}")
                try:
                    took = _take_turn(model, meter, case, load)
                except VilaError as error:
                    refused[case] = str(error)
                    continue
                if turn:
                    turns.setdefault(case, []).append(took)
    return [
        Row(case, refused=refused[case]) if case in refused else Row(case, cost=_cost(turns[case], len(load.pictures)))
        for case in cases
    ]


def _take_turn(model: Model, meter: Meter, case: Case, load: Load) -> _Turn:
    """The request as a user sends it, and once more with its programs watched."""
    options: Mapping[str, Any] = {"budget": case.budget, "max_new_tokens": load.new_tokens, "ignore_eos": True}
    messages = load.messages()
    start = time.perf_counter()
    answers = model.answers(messages=messages, **options)
    chunks: Iterator[Any] = iter(answers)
    next(chunks)
    first_token = time.perf_counter() - start
    for _ in chunks:
        pass
    results = answers.results()
    further = sum(len(result.token_ids) - 1 for result in results)
    with meter.watch() as calls:
        model.generate(messages=messages, **options)
        _select(model, case, load)
    return _Turn(
        first_token=first_token,
        decode_rate=further / max(results[0].timings.decode, 1e-9),
        tokens=[result.usage.visual_tokens_kept for result in results],
        calls=calls,
    )


def _select(model: Model, case: Case, load: Load) -> None:
    """Runs the choice of tokens as a program of its own, where there is one."""
    planner, phases = model.engine.planner, model.engine.phases
    tiles = planner.tiles([model.preprocessor(picture) for picture in load.pictures], _budget(model, case))
    if tiles.pictures is not None:
        phases.selection(tiles)


def _budget(model: Model, case: Case) -> Any:
    return parse_budget(case.budget, model.checkpoint)


def _cost(turns: Sequence[_Turn], rows: int) -> Cost:
    calls = turns[0].calls
    flops = {call.name: call.program.flops / rows for call in calls}
    programs = {id(call.program): call.program for call in calls if call.name != _SELECTION}
    [prefill] = [call.program for call in calls if call.name == _PREFILL]
    caches = jax.tree.leaves(prefill.result.cache)
    tokens = turns[0].tokens

    def spread(name: str) -> Spread:
        return Spread.of([next(call.seconds for call in turn.calls if call.name == name) for turn in turns])

    chosen = flops.get(_SELECTION, 0)
    return Cost(
        tokens_mean=statistics.fmean(tokens),
        tokens_max=max(tokens),
        tower_flops=flops[_TOWER],
        selector_flops=chosen,
        projector_flops=flops[_VISUAL] - chosen,
        prefill_flops=flops[_PREFILL],
        decode_flops=flops.get(_DECODE, 0),
        kv_bytes=sum(cache.size * cache.dtype.itemsize for cache in caches) / rows,
        compile_time=sum(program.compile_time for program in programs.values()),
        tower=spread(_TOWER),
        selector=spread(_SELECTION) if _SELECTION in flops else None,
        prefill=spread(_PREFILL),
        first_token=Spread.of([turn.first_token for turn in turns]),
        decode_rate=Spread.of([turn.decode_rate for turn in turns]),
    )
