"""The benches of a request: `prefill`, `decode`, `generate`, `vision` and `compile`, each a row of numbers.

device times    programs called on arrays that lie in device memory, until their results do
wall times      from the files of the pictures in memory: decoding, resizing and laying out included
"""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vila_jax.bench import floors
from vila_jax.bench.machine import Rates
from vila_jax.bench.meter import Call, Meter, metered
from vila_jax.bench.results import Row
from vila_jax.bench.subject import Batch, Case, Subject
from vila_jax.bench.timing import REPEATS, interleaved, measure
from vila_jax.errors import VilaError
from vila_jax.infer.layout import Layout
from vila_jax.infer.phases import CHUNK
from vila_jax.infer.sampler import Sampler, SamplingOptions
from vila_jax.infer.vision import Spec
from vila_jax.vision.preprocess import ProcessedImage

FULL = "full"
"""In place of a budget: all tokens."""

_TOWER, _VISUAL, _PREFILL = "vision tower", "visual tokens", "prefill"
_NO_END = np.asarray([-1], np.int32)  # no token has this id


class Bench:
    """A case, ready to be measured.

    Args:
      subject: the model.
      case: what is asked of it.
      rates: for floors.
      repeats: of everything.
      meter: has taken the place of the subject's programs.
    """

    def __init__(self, subject: Subject, case: Case, rates: Rates, repeats: int, meter: Meter):
        self.subject, self.case, self.rates, self.repeats, self.meter = subject, case, rates, repeats, meter
        self.batch = Batch(subject, case)
        self.pictures = self.batch.pictures()
        self.layout = self.batch.layout(self.pictures)
        rows = len(self.layout.prompts.token_ids)  # the batch, rounded up to a bucket
        self.sampler = Sampler.of([SamplingOptions()] * rows)
        self.limit = np.asarray([case.new_tokens] * case.batch + [0] * (rows - case.batch), np.int32)

    def prefill(self, layout: Layout) -> Any:
        """From laid-out arrays to the first tokens."""
        phases = self.subject.engine.phases
        return phases.prefill(layout, phases.visual_tokens(layout.tiles), self.sampler, self.limit, _NO_END)

    def calls(self) -> list[Call]:
        """The programs from pixels to the first token, with their arguments."""
        with self.meter.watch() as calls:
            self.prefill(self.layout)
        return calls

    @property
    def sizes(self) -> floors.Sizes:
        """What the batch asks at least."""
        planner, budget, count = self.subject.engine.planner, self.batch.budget, self.layout.counts[0]
        spec: Spec | None = None if self.layout.tiles is None else self.layout.tiles.spec
        return floors.Sizes(
            batch=self.case.batch,
            tiles=planner.tower_tiles(self.pictures[0].geometry),
            text=count.text,
            visual=count.visual_kept,
            itemsize=np.dtype(self.subject.dtype).itemsize,
            step=None if budget is None else budget.step("decoder"),
            reduction=None if spec is None else spec.reduction,
            quantization=self.subject.quantization,
        )

    def row(self, name: str, times: dict[str, Any], facts: dict[str, Any]) -> Row:
        """A row of this case, with what all benches tell."""
        count, padded = self.layout.counts[0], self.layout.prompts.token_ids
        common = {
            "visual_tokens": count.visual_kept,
            "sequence": count.prompt,
            "padded_sequence": padded.shape[1],
            "padding": 1 - self.case.batch * count.prompt / padded.size,
            "compile_seconds": self.meter.compile_time,
            "peak_bytes": peak_bytes(),
        }
        if self.meter.programs:
            common["planned_bytes"] = max(program.bytes for program in self.meter.programs)
        case = self.subject.named | dataclasses.asdict(self.case)
        return Row(name, case, times, facts | common)


def prefill(bench: Bench) -> Row:
    """The time to the first token, on the device and on the wall."""
    calls = bench.calls()
    times = interleaved({"device": replay(calls), "wall": _clock("wall", lambda: _first_tokens(bench))}, bench.repeats)
    config, sizes = bench.subject.config.vlm, bench.sizes
    stages = floors.prefill_stages(config, sizes)
    floor = floors.prefill_floor(config, sizes, bench.rates)
    device = times["device"]["device"].median
    work = sum(stage.flops for stage in stages)
    facts = {
        "flops": work,
        "program_flops": sum(call.program.flops for call in calls),
        "bytes": sum(stage.bytes for stage in stages),
        "floor_seconds": floor,
        "of_floor": floor / device,
        "of_flops": work / device / bench.rates.flops,
        "tokens_per_second": bench.case.batch * bench.layout.counts[0].prompt / device,
    }
    return bench.row("prefill", times["device"] | times["wall"], facts)


def decode(bench: Bench) -> Row:
    """The time of a step, in which every row of the batch gets one more token.

    Chunks of steps follow each other without waiting. The prompts are read again before every repeat, which is not
    timed, since a chunk takes the memory of the cache over.
    """
    steps = _further(bench.case)
    [read] = [call for call in bench.calls() if call.name == _PREFILL]

    def work() -> dict[str, float]:
        progress = jax.block_until_ready(read.again(*read.args))
        start = time.perf_counter()
        for _ in range(-(-steps // CHUNK)):
            progress, tokens = bench.subject.engine.phases.decode(
                progress, np.zeros(len(bench.limit), bool), bench.sampler, _NO_END, bench.layout.schedule
            )
        jax.block_until_ready((progress, tokens))
        return {"step": (time.perf_counter() - start) / steps}

    times = measure(work, bench.repeats)
    least = floors.decode_work(bench.subject.config.vlm, bench.sizes, (bench.case.new_tokens - 1) / 2)
    step = times["step"].median
    facts = {
        "flops": least.flops,
        "bytes": least.bytes,
        "floor_seconds": least.seconds(bench.rates),
        "of_floor": least.seconds(bench.rates) / step,
        "of_bandwidth": least.bytes / step / bench.rates.bandwidth,
        "tokens_per_second": bench.case.batch / step,
    }
    return bench.row("decode", times, facts)


def generate(bench: Bench) -> Row:
    """Whole answers as a user waits for them: from the files of the pictures to the last token."""
    steps = _further(bench.case)
    config, sizes = bench.subject.config.vlm, bench.sizes

    def work() -> dict[str, float]:
        start = time.perf_counter()
        requests = bench.batch.requests(bench.batch.pictures())
        sampling = [SamplingOptions()] * len(requests)
        run = bench.subject.engine.generate(
            requests, sampling, bench.case.new_tokens, budget=bench.batch.budget, end_tokens=()
        )
        next(iter(run))
        first = time.perf_counter() - start
        for _ in run:
            pass
        return {"wall": time.perf_counter() - start, "first_token": first}

    times = measure(work, bench.repeats)
    step = floors.decode_work(config, sizes, (bench.case.new_tokens - 1) / 2).seconds(bench.rates)
    floor = floors.prefill_floor(config, sizes, bench.rates) + steps * step
    wall, first = times["wall"].median, times["first_token"].median
    facts = {
        "floor_seconds": floor,
        "of_floor": floor / wall,
        "tokens_per_second_of_wall": bench.case.batch * bench.case.new_tokens / wall,
        "decode_tokens_per_second": bench.case.batch * steps / max(wall - first, 1e-9),
        "requests_per_second": bench.case.batch / wall,
    }
    return bench.row("generate", times, facts)


def vision(bench: Bench) -> Row:
    """The way of the pictures: preparing them on the host, the tower, and the choice and projection of tokens."""
    calls = {call.name: call for call in bench.calls()}
    works = {name: replay([calls[name]], clock) for name, clock in ((_TOWER, "tower"), (_VISUAL, "tokens"))}
    works["prepare"] = _clock("prepare", bench.batch.pictures)
    found = interleaved(works, bench.repeats)
    times = {clock: value for clocks in found.values() for clock, value in clocks.items()}
    tower = floors.tower_work(bench.subject.config.vlm, bench.sizes)
    seconds, floor = times["tower"].median, tower.seconds(bench.rates)
    facts = {
        "flops": tower.flops,
        "program_flops": calls[_TOWER].program.flops,
        "bytes": tower.bytes,
        "floor_seconds": floor,
        "of_floor": floor / seconds,
        "of_flops": tower.flops / seconds / bench.rates.flops,
        "tiles": bench.case.batch * bench.sizes.tiles,
        "pictures_per_second": bench.case.batch / (seconds + times["tokens"].median),
    }
    return bench.row("vision", times, facts)


def compilation(bench: Bench) -> Row:
    """Seconds to compile each program of a request from nothing: no cache is read."""

    def work() -> dict[str, float]:
        jax.clear_caches()  # or what was traced before would not be traced again
        with metered(bench.subject.engine) as meter:
            progress = bench.prefill(bench.layout)
            stopped = np.zeros(len(bench.limit), bool)
            bench.subject.engine.phases.decode(progress, stopped, bench.sampler, _NO_END, bench.layout.schedule)
            seconds = {program.name: program.compile_time for program in meter.programs}
        return seconds | {"all": sum(seconds.values())}

    times = measure(work, bench.repeats)
    row = bench.row("compile", times, {})
    return dataclasses.replace(row, facts=row.facts | {"compile_seconds": times["all"].median})


BENCHES: dict[str, Callable[[Bench], Row]] = {
    "prefill": prefill,
    "decode": decode,
    "generate": generate,
    "vision": vision,
    "compile": compilation,
}


def measure_cases(
    subject: Subject,
    benches: Sequence[str],
    cases: Sequence[Case],
    rates: Rates,
    repeats: int = REPEATS,
    on_step: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measures all cases, one after another.

    A case that the model refuses, or that does not fit into memory, becomes a row that says why.

    Raises:
      VilaError: it is the only one, and refused.
    """
    rows: list[Row] = []
    for case in cases:
        try:
            jax.clear_caches()  # so that compile times are those from nothing
            with metered(subject.engine) as meter:
                bench = Bench(subject, case, rates, repeats, meter)
                for name in benches:
                    on_step(f"{name}: batch {case.batch}, budget {case.budget or FULL}")
                    rows.append(BENCHES[name](bench))
        except (VilaError, MemoryError, jax.errors.JaxRuntimeError) as error:
            reason = str(error) if isinstance(error, VilaError) else "out of memory"
            if len(cases) == 1 or not (isinstance(error, VilaError | MemoryError) or out_of_memory(error)):
                raise
            about = subject.named | dataclasses.asdict(case)
            done = {row.bench for row in rows if row.case == about}
            rows += [Row(name, about, refused=reason) for name in benches if name not in done]
    return rows


def out_of_memory(error: Exception) -> bool:
    """Whether a device had too little memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def replay(calls: Sequence[Call], clock: str = "device") -> Callable[[], dict[str, float]]:
    """The programs once more, on arguments that lie on the device; nothing waits but the end."""
    prepared = [(call.again, jax.block_until_ready(jax.device_put(call.args))) for call in calls]
    return _clock(clock, lambda: jax.block_until_ready([again(*args) for again, args in prepared]))


def peak_bytes() -> int:
    """Most memory so far: of the default device where it tells, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # kibibytes, but for macOS


def _first_tokens(bench: Bench) -> Any:
    pictures: list[ProcessedImage] = bench.batch.pictures()
    return jax.block_until_ready(bench.prefill(bench.batch.layout(pictures)))


def _clock(name: str, work: Callable[[], Any]) -> Callable[[], dict[str, float]]:
    def clocks() -> dict[str, float]:
        start = time.perf_counter()
        work()
        return {name: time.perf_counter() - start}

    return clocks


def _further(case: Case) -> int:
    """Tokens of a row after its first.

    Raises:
      VilaError: there are none.
    """
    if case.new_tokens < 2:
        raise VilaError("there is no step after the first token", where="--new-tokens", fix="Ask for 2 at least.")
    return case.new_tokens - 1
