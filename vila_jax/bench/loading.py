"""Loading a checkpoint: its time against a plain read of the same files, and its memory beyond the parameters.

Every load happens in a process of its own, since memory that was once used cannot be measured again in the same one. A
read of the files into memory of their size does, too, since its memory is fresh there as well:

    python -m vila_jax.bench.loading FOLDER DTYPE         # loads once, and prints what it took
    python -m vila_jax.bench.loading FOLDER DTYPE mmap    # loads once, leaving weights in the pages of their files
    python -m vila_jax.bench.loading FOLDER               # reads once
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from vila_jax.bench.memory import parameter_shapes
from vila_jax.bench.results import Row
from vila_jax.bench.timing import interleaved
from vila_jax.errors import VilaError
from vila_jax.heap import collect_seldom
from vila_jax.hf.config import parse_config
from vila_jax.hf.keys import key_table
from vila_jax.hf.out_tensor import OutTensor, write_file


@dataclasses.dataclass(frozen=True)
class Load:
    """One load, or read, in its own process: seconds, and most bytes of host memory beyond what was there before."""

    seconds: float
    peak: int


def write_checkpoint(folder: pathlib.Path, config: dict[str, Any], shards: int = 5) -> None:
    """Random bfloat16 weights of a `config.json`, one shard in memory at a time.

    Args:
      config: of Hugging Face's LLaVA, or of a VILA of three folders.
      shards: files of the language model; for a LLaVA of the whole model.
    """
    model = parse_config(config)
    table = key_table(model.layout, model.vlm)
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in parameter_shapes(model.vlm).items():
        part, _, name = str(table.to_hf(path)).rpartition("/")
        parts.setdefault(part, {})[name] = shape
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    keys = {"llm": "llm_cfg", "vision_tower": "vision_tower_cfg", "mm_projector": "mm_projector_cfg"}
    for part, shapes in parts.items():
        (folder / part).mkdir(exist_ok=True)
        if part:
            (folder / part / "config.json").write_text(json.dumps(config[keys[part]]))
        _write_shards(folder / part, shapes, shards if part in ("", "llm") else 1)


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
        tensors = [OutTensor(name, "BF16", shapes[name], read=_noise(rng, shapes[name])) for name in names]
        write_file(epath.Path(folder / file), tensors, lambda tensor: None)
        weight_map |= dict.fromkeys(names, file)
    if count > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: rng.standard_normal(shape, np.float32) * 0.02


def plain_read(folder: pathlib.Path, *, keep: bool = False) -> float:
    """Seconds in which one thread reads all weights of a folder.

    Args:
      keep: into fresh memory for each file, as whoever wants the weights must; else into one small buffer.
    """
    buffer, kept = memoryview(bytearray(16 * 2**20)), []
    start = time.perf_counter()
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            if keep:
                kept.append(np.empty(file.stat().st_size, np.uint8))
            left = memoryview(kept[-1].data) if keep else buffer
            while left and (count := stream.readinto(left)):
                left = left[count:] if keep else buffer
    return time.perf_counter() - start


def measure_load(name: str, folder: pathlib.Path, dtype: str, repeats: int) -> Row:
    """Loads and plain reads in turn, after one of each that warms the page cache.

    Raises:
      VilaError: the checkpoint cannot be loaded.
    """
    files = [file.stat().st_size for file in folder.rglob("*.safetensors")]
    peaks: list[int] = []

    def apart(*options: str) -> Load:
        command = [sys.executable, "-m", "vila_jax.bench.loading", str(folder), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise VilaError(f"the process that loads ended with {done.returncode}: {reason}", where=name)
        return Load(**json.loads(done.stdout.splitlines()[-1]))

    def load() -> dict[str, float]:
        once = apart(dtype)
        peaks.append(once.peak)
        return {"load": once.seconds, "mapped_load": apart(dtype, "mmap").seconds}

    def read() -> dict[str, float]:
        return {"plain_read": plain_read(folder), "kept_read": apart().seconds}

    turns = interleaved({"load": load, "read": read}, repeats)
    times = turns["load"] | turns["read"]
    loaded = times["load"].median
    facts = {
        "file_bytes": sum(files),
        "largest_file": max(files),
        "bytes_per_second": sum(files) / loaded,
        "of_plain_read": times["plain_read"].median / loaded,
        "of_kept_read": times["kept_read"].median / loaded,
        "mapped_of_plain_read": times["plain_read"].median / times["mapped_load"].median,
        "mapped": _mapped(folder, dtype),
        "peak_bytes": max(peaks),
    }
    return Row("load", {"model": name, "dtype": dtype}, times, facts)


def _mapped(folder: pathlib.Path, dtype: str) -> float:
    """The part of the weights, in bytes, that can stay in the pages of their files."""
    from vila_jax.hf.checkpoint import open_checkpoint
    from vila_jax.hf.load import plan_weights

    sources = [target.source for target in plan_weights(open_checkpoint(folder), dtype=dtype).targets.values()]
    return sum(own.nbytes for own in sources if own.in_place(dtype) is not None) / sum(own.nbytes for own in sources)


def load_once(folder: pathlib.Path, dtype: str, *, mmap: bool = False) -> Load:
    """Loads in this process; `mmap` as in `vila_jax.from_pretrained`."""
    from vila_jax.hf.checkpoint import open_checkpoint
    from vila_jax.hf.load import load_state

    jax.block_until_ready(jax.device_put(np.zeros(1)))  # the backend is up
    before = _resident("VmRSS")
    start = time.perf_counter()
    _, state = load_state(open_checkpoint(folder), dtype=dtype, mmap=mmap)
    jax.block_until_ready(jax.tree.leaves(state))
    return Load(time.perf_counter() - start, _resident("VmHWM") - before)


def _resident(key: str) -> int:
    """Bytes of this process that are in memory now (`VmRSS`), or were at most (`VmHWM`). Linux alone."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def read_once(folder: pathlib.Path) -> Load:
    """Reads in this process, and keeps what was read."""
    before = _resident("VmRSS")
    return Load(plain_read(folder, keep=True), _resident("VmHWM") - before)


if __name__ == "__main__":
    collect_seldom()  # as the command line does
    read_from, options = pathlib.Path(sys.argv[1]), sys.argv[2:]
    found = load_once(read_from, options[0], mmap="mmap" in options) if options else read_once(read_from)
    print(json.dumps(dataclasses.asdict(found)))
