"""Loading a checkpoint: its time against a plain read of the same files, and its memory beyond the parameters.

    python -m vila_jax.bench.loading --out docs/loading.md

Writes an NVILA of 1.5 B random weights (bfloat16, the language model in five shards) to a temporary folder, and loads
it in processes of their own, since memory that was once used cannot be measured again in the same one.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from vila_jax.bench.memory import parameter_shapes
from vila_jax.hf.config import parse_config
from vila_jax.hf.keys import key_table

_REPEATS = 5
_TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
_DECODER = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 18,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
CONFIG = {
    "model_type": "llava_llama",
    "architectures": ["LlavaLlamaModel"],
    "llm_cfg": _DECODER,
    "vision_tower_cfg": _TOWER,
    "mm_projector_cfg": {"model_type": "v2l_projector", "mm_projector_type": "mlp_downsample_3x3_fix"},
    "hidden_size": 1536,
    "mm_hidden_size": 1152,
    "image_aspect_ratio": "dynamic",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "cls_patch",
    "max_tiles": 12,
}


@dataclasses.dataclass(frozen=True)
class Load:
    """One load in its own process: seconds, and bytes of host memory at its peak beyond what was there before."""

    seconds: float
    peak: int


def write_checkpoint(folder: pathlib.Path, config: dict[str, Any] = CONFIG, shards: int = 5) -> None:
    """A three-folder checkpoint of random bfloat16 weights, one shard in memory at a time."""
    model = parse_config(config)
    table = key_table(model.layout, model.vlm)
    parts: dict[str, dict[str, tuple[int, ...]]] = {"llm": {}, "vision_tower": {}, "mm_projector": {}}
    for path, shape in parameter_shapes(model.vlm).items():
        part, _, name = str(table.to_hf(path)).partition("/")
        parts[part][name] = shape
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    keys = {"llm": "llm_cfg", "vision_tower": "vision_tower_cfg", "mm_projector": "mm_projector_cfg"}
    for part, shapes in parts.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config[keys[part]]))
        _write_shards(folder / part, shapes, shards if part == "llm" else 1)


def _write_shards(folder: pathlib.Path, shapes: dict[str, tuple[int, ...]], count: int) -> None:
    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    groups: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(shapes, key=lambda name: -int(np.prod(shapes[name]))):
        least = sizes.index(min(sizes))
        groups[least].append(name)
        sizes[least] += int(np.prod(shapes[name]))
    for number, names in enumerate(groups, start=1):
        file = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        tensors = {name: _noise(rng, shapes[name]) for name in names}
        safetensors.numpy.save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(names, file)
    if count > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)


def plain_read(folder: pathlib.Path, *, keep: bool = False) -> float:
    """Seconds to read all weights of a folder once, by one thread.

    Args:
      keep: into fresh memory for each file, as whoever wants the weights must; else into one small buffer.
    """
    buffer, kept = memoryview(bytearray(16 * 2**20)), []
    start = time.perf_counter()
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            if keep:
                kept.append(np.empty(file.stat().st_size, np.uint8))
            left = memoryview(kept[-1]) if keep else buffer
            while left and (count := stream.readinto(left)):
                left = left[count:] if keep else buffer
    return time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one turn took: a load, and seconds of plain reads into one buffer and into memory that is kept."""

    load: Load
    read: float
    kept: float


def load_once(folder: pathlib.Path) -> Load:
    """Loads in this process, in bfloat16."""
    from vila_jax.hf.checkpoint import open_checkpoint
    from vila_jax.hf.load import load_state

    jax.block_until_ready(jax.device_put(np.zeros(1)))  # the backend is up
    before = _resident("VmRSS")
    start = time.perf_counter()
    _, state = load_state(open_checkpoint(folder), dtype="bfloat16")
    jax.block_until_ready(jax.tree.leaves(state))
    return Load(time.perf_counter() - start, _resident("VmHWM") - before)


def _resident(key: str) -> int:
    """Bytes of this process that are in memory now (`VmRSS`), or were at most (`VmHWM`). Linux alone."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(folder: pathlib.Path, repeats: int = _REPEATS) -> list[Turn]:
    """Loads and plain reads in turn, after one of each to warm the page cache."""
    command = [sys.executable, "-m", "vila_jax.bench.loading", "--once", str(folder)]
    turns = []
    for _ in range(repeats + 1):
        read, kept = plain_read(folder), plain_read(folder, keep=True)
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        turns.append(Turn(Load(**json.loads(answer)), read, kept))
    return turns[1:]


def report(folder: pathlib.Path, turns: list[Turn]) -> str:
    """The page of `docs/`."""
    files = [file.stat().st_size for file in folder.rglob("*.safetensors")]
    parameters = sum(files)
    beyond = [turn.load.peak - parameters for turn in turns]
    seconds, reads, kept = zip(*((turn.load.seconds, turn.read, turn.kept) for turn in turns), strict=True)
    largest = f"at most {max(beyond) / max(files):.2f} x the largest file"
    speed = [f"{statistics.median(own) / statistics.median(seconds):.0%}" for own in (kept, reads)]
    return f"""# Loading

Made by `python -m vila_jax.bench.loading`; not edited by hand. {datetime.date.today()}, {platform.machine()},
Python {platform.python_version()}, jax {jax.__version__}; files in the page cache; {len(turns)} repeats;
median (range).

An NVILA with the tower of the releases and a Qwen2 of 18 layers, of random bfloat16
weights: {parameters / 1e9:.2f} GB in {len(files)} files, the largest
{max(files) / 1e9:.2f} GB. Loaded in bfloat16 on a CPU, each time in a new process.

| | |
|---|---|
| plain read of the same files into memory that is kept | {_spread(kept)} s |
| plain read into one small buffer | {_spread(reads)} s |
| load | {_spread(seconds)} s: {speed[0]} of the speed of the former, {speed[1]} of the latter |
| peak host memory beyond the parameters | {_spread([b / 1e9 for b in beyond])} GB, {largest} |
"""


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main(argv: list[str] | None = None) -> int:
    """Measures, or loads once for a measurement."""
    parser = argparse.ArgumentParser(prog="python -m vila_jax.bench.loading", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, help="the page to write; printed otherwise")
    parser.add_argument("--once", type=pathlib.Path, metavar="FOLDER", help="load this folder and print what it took")
    args = parser.parse_args(argv)
    if args.once is not None:
        print(json.dumps(dataclasses.asdict(load_once(args.once))))
        return 0
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        write_checkpoint(folder / "checkpoint")
        text = report(folder / "checkpoint", measure(folder / "checkpoint"))
    finally:
        shutil.rmtree(folder)
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
