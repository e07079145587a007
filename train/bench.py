"""`python -m train bench PRESET [PRESET…]`: how fast steps of training are here, with random weights and random rows.

    7b-lora     7 B (LLaVA-1.5's widths): low-rank additions of rank 64 to the decoder, and the projector
    7b-full     the same, projector and decoder whole, with Adafactor
    3b-full     3 B (VILA1.5-3b's widths): tower, projector and decoder whole, with AdamW
    1.5b-full   Qwen2-1.5B behind SigLIP at 448: likewise
    0.3b-full   `mid-0.3b` of the other benches: likewise; rows of 1,024 tokens and a tile, for machines without a GPU
    tiny        100 thousand weights, to see that it runs

A row of a batch holds `--samples` samples of equal length, each with its share of the tiles. MFU is of the FLOPs that
the step needs (`train/flops.py`), against the data sheet's rate where there is one, and against what a matrix product
reaches on this machine. A preset that does not fit into memory is reported as such.
"""

import argparse
import dataclasses
import gc
import json
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from rich.console import Console
from rich.table import Table

from train import lora as low_rank
from train.compile import make_state, make_step
from train.data.labels import IGNORED
from train.flops import stage_flops
from train.metrics.counts import count
from train.metrics.meter import Meter
from train.metrics.rows import Row, Writer
from train.objective import answer_sums
from train.optim import make_optimizer
from train.recipe import Optimizer
from train.update import Objective, Rules
from train.weights import Flat, Structure, split
from vila_jax.bench import machine
from vila_jax.bench.presets import preset
from vila_jax.bench.random_weights import random_weight
from vila_jax.bench.timing import Times
from vila_jax.cli import units
from vila_jax.errors import ConfigError
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import abstract
from vila_jax.nn.stacked import Execution, Remat
from vila_jax.nn.vlm import VLM

console = Console(stderr=True, markup=False, highlight=False)


@dataclasses.dataclass(frozen=True)
class Preset:
    """What is trained.

    Attributes:
      config: the widths.
      trained: groups.
      rule: that moves the weights.
      lora: low-rank additions.
      tokens, tiles: of a row.
    """

    config: VLMConfig
    trained: tuple[str, ...]
    rule: Literal["adamw", "adafactor"]
    lora: low_rank.Lora | None = None
    tokens: int = 4096
    tiles: int = 4


_BOTH, _ALL = ("projector", "decoder"), ("tower", "projector", "decoder")

PRESETS = {
    "7b-lora": Preset(preset("llava-1.5-7b").vlm, _BOTH, "adamw", low_rank.Lora(rank=64)),
    "7b-full": Preset(preset("llava-1.5-7b").vlm, _BOTH, "adafactor"),
    "3b-full": Preset(preset("vila1.5-3b").vlm, _ALL, "adamw", tiles=8),
    "1.5b-full": Preset(preset("nvila-1.5b").vlm, _ALL, "adamw", tiles=8),
    "0.3b-full": Preset(preset("mid-0.3b").vlm, _ALL, "adamw", tokens=1024, tiles=1),
    "tiny": Preset(preset("tiny").vlm, _BOTH, "adamw", low_rank.Lora(rank=4), tokens=128),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """How a preset is run.

    Attributes:
      rows, samples: of a step, and of a row.
      steps: that are measured.
    """

    rows: int
    samples: int
    steps: int
    remat: Remat
    scan: bool
    chunk: int
    dtype: Literal["bfloat16", "float32"]


class _Last(Writer):
    """Keeps the last row."""

    values: dict[str, float]

    def write(self, row: Row) -> None:
        self.values = dict(row.values)


def main(argv: list[str]) -> None:
    """Measures presets.

    Raises:
      ConfigError: samples that do not share the tokens and tiles of a row evenly.
    """
    parser = argparse.ArgumentParser(
        prog="python -m train bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="+", choices=PRESETS, metavar="PRESET", help=", ".join(PRESETS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1], help="of a step; several are measured one by one")
    parser.add_argument("--samples", type=int, default=4, help="of a row")
    parser.add_argument("--steps", type=int, default=10, help="that are measured")
    parser.add_argument("--remat", choices=("none", "minimal", "full", "offload"), default="minimal")
    parser.add_argument("--unrolled", action="store_true", help="no scan over blocks")
    parser.add_argument("--chunk", type=int, default=1024, help="positions whose scores are held at a time")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args(argv)
    results = []
    for name in args.presets:
        for rows in args.rows:
            run = Run(rows, args.samples, args.steps, args.remat, not args.unrolled, args.chunk, args.dtype)
            console.print(f"{name}, {rows} rows …")
            results.append({"preset": name, **dataclasses.asdict(run), **measured(PRESETS[name], run)})
            gc.collect()
    device, dtype = jax.devices()[0], args.dtype
    reached, sheet = machine.measure_matmul(dtype), machine.peak([device], dtype)
    for result in results:
        if "flops_per_second" in result:
            result |= {"mfu": result["flops_per_second"] / sheet.flops}
            result |= {"of_matmul": result["flops_per_second"] / reached}
    console.print(_table(results))
    console.print(f"{device.device_kind}: MFU of {sheet.source}, {units.rate(sheet.flops, 'FLOP/s')}")
    console.print(f"products in {dtype} reach {units.rate(reached, 'FLOP/s')}")
    if args.json is not None:
        about = {"device": device.device_kind, "jax": jax.__version__, "peak": dataclasses.asdict(sheet)}
        args.json.write_text(json.dumps(about | {"matmul": reached, "results": results}, indent=1) + "\n")


def find_preset(name: str) -> Preset:
    """One of `PRESETS`; of another model's shapes projector and decoder are trained whole.

    Raises:
      ConfigError: there is no such model either.
    """
    return PRESETS[name] if name in PRESETS else Preset(preset(name).vlm, _BOTH, "adafactor")


def measured(preset: Preset, run: Run) -> dict[str, Any]:
    """Rates of a preset: what the meter tells, and FLOP/s; or `error`."""
    try:
        return _measured(preset, run)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            return {"error": "out of memory"}
        raise


def _measured(preset: Preset, run: Run) -> dict[str, Any]:
    structure, trained, frozen = random_model(preset, run)
    optimizer = make_optimizer(Optimizer(preset.rule), dict.fromkeys(preset.trained, 1e-5), run.steps)
    rules = Rules()
    step = make_step(objective_of(structure, run), optimizer, rules, trained)
    parameters = sum(value.size for value in [*trained.values(), *frozen.values()])
    state = make_state(trained, optimizer, rules)
    moved = sum(value.size for value in trained.values())
    del trained  # the state has copies
    rng, cost = np.random.default_rng(0), stage_flops(preset.config, preset.trained, lora=preset.lora)
    last, total = _Last(), run.steps + 1  # the first compiles, and is not timed
    seconds: list[float] = []
    batches = [random_batch(preset, run, rng) for _ in range(2)]
    counts = count(batches[0])
    with Meter([last], steps=total, every=total) as meter:
        for number in range(1, total + 1):
            batch = {name: value[None] for name, value in batches[number % 2].items() if name != "used"}
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(step(state, frozen, batch))
            seconds.append(time.perf_counter() - start)
            meter.step(number, metrics, counts, 0.0)
    return {
        "parameters": parameters,
        "trained": moved,
        "tokens": int(counts.tokens),
        "flops": cost(counts),
        "flops_per_second": cost(counts) / last.values["step_seconds"],
        "seconds": dataclasses.asdict(Times.of(seconds[1:])),
        **last.values,
    }


def objective_of(structure: Structure, run: Run) -> Objective:
    """The loss of the answers, computed in the dtype of the run."""

    def objective(trained: Flat, frozen: Flat, part: Any) -> Any:
        model = structure.model(trained | frozen, run.dtype)
        return answer_sums(model, part | {"pixels": part["pixels"].astype(run.dtype)}, chunk=run.chunk)

    return objective


def random_model(preset: Preset, run: Run) -> tuple[Structure, Flat, Flat]:
    """A structure, and random weights: those trained in float32, those frozen in the dtype of the run."""
    structure, trained, frozen = abstract_model(preset, run)
    return structure, _filled(trained, jnp.float32), _filled(frozen, run.dtype)


def abstract_model(preset: Preset, run: Run) -> tuple[Structure, Flat, Flat]:
    """A structure, and what is trained and what is frozen, without memory."""

    def build(rngs: nnx.Rngs) -> VLM:
        model = VLM(preset.config, rngs=rngs)
        if preset.lora is not None:
            low_rank.add(model, preset.lora, rngs=rngs)
        return model

    execution = Execution(run.remat)
    model = nnx.merge(*abstract(build))
    structure, weights = Structure.of(model, stacked=run.scan, tower=execution, decoder=execution)
    return structure, *split(weights, preset.trained, preset.lora.groups if preset.lora else ())


def _filled(weights: Flat, dtype: DTypeLike) -> Flat:
    """Random numbers in place of abstract weights."""
    keys = jax.random.split(jax.random.key(0), len(weights))
    return {
        name: random_weight(key, name, value.shape, dtype)
        for key, (name, value) in zip(keys, weights.items(), strict=True)
    }


def random_batch(preset: Preset, run: Run, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Full rows, as `train.data.packing.pack` makes them: in every sample its pictures, then text that is learned."""
    if preset.tokens % run.samples or preset.tiles % run.samples:
        what = f"{run.samples} samples cannot share {preset.tokens} tokens and {preset.tiles} tiles evenly"
        raise ConfigError(what, where="--samples", fix="Use a divisor of both.")
    config, length, tiles = preset.config, preset.tokens // run.samples, preset.tiles // run.samples
    visual = tiles * config.tokens_per_tile
    source = np.full((run.samples, length), -1, np.int32)
    source[:, :visual] = np.arange(run.samples * visual).reshape(run.samples, visual)
    token_ids = rng.integers(0, config.decoder.vocab_size, (run.rows, run.samples, length)).astype(np.int32)
    targets = np.roll(token_ids, -1, axis=-1)
    targets[:, :, : max(visual - 1, 0)] = IGNORED
    targets[:, :, -1] = IGNORED
    edge = config.vision.image_size
    segments = np.repeat(np.arange(1, run.samples + 1, dtype=np.int32), length)
    rows = {"source": source.reshape(-1), "segments": segments}
    rows["positions"] = np.tile(np.arange(length, dtype=np.int32), run.samples)
    return {
        "token_ids": token_ids.reshape(run.rows, -1),
        "targets": targets.reshape(run.rows, -1),
        **{name: np.repeat(row[None], run.rows, axis=0) for name, row in rows.items()},
        "pixels": rng.standard_normal((run.rows, run.samples * tiles, 3, edge, edge), np.float32),
        "used": np.full((run.rows, 2), (run.samples * length, run.samples * tiles), np.int32),
    }


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(
        "preset", "rows", "weights", "trained", "s/step", "tokens/s", "FLOP/s", "MFU", "of products", "memory"
    )
    for result in results:
        name, rows = result["preset"], str(result["rows"])
        if "error" in result:
            table.add_row(name, rows, result["error"])
            continue
        memory = result.get("memory/device_peak", result.get("memory/host", 0))
        table.add_row(
            name,
            rows,
            units.count(result["parameters"]),
            units.count(result["trained"]),
            units.seconds(result["step_seconds"]),
            f"{result['tokens_per_second']:,.0f}",
            units.rate(result["flops_per_second"], ""),
            f"{result['mfu']:.1%}",
            f"{result['of_matmul']:.1%}",
            units.size(int(memory)),
        )
    return table
