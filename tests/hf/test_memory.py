"""Loading takes little more host memory than the weights themselves."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from vila_jax.hf.config import parse_config
from vila_jax.hf.keys import LLAVA
from vila_jax.hf.load import abstract_model
from vila_jax.nn.params import dotted

CONFIG = {
    "model_type": "llava",
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "text_config": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
        "vocab_size": 2048,
    },
}
SHARDS = 4

# A process of its own: the peak of this one was reached long ago. Prints bytes: peak above the start, and parameters.
PROGRAM = """
import sys, jax, jax.numpy as jnp, numpy as np
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.load import abstract_model, load_state
from vila_jax.quantize.spec import Quantization
from vila_jax.quantize.structure import quantized

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

checkpoint = open_checkpoint(sys.argv[1])
abstract_model(checkpoint.config.vlm, np.float32)
jax.block_until_ready(jax.device_put(np.ones(1000, np.float32)))
quantization = Quantization.parse(sys.argv[3]) if len(sys.argv) > 3 else None
if quantization is not None:  # compiles
    for shape in ((512, 512), (1376, 512), (512, 1376)):
        jax.block_until_ready(quantized("weight", jnp.ones(shape), quantization))
before = memory("VmRSS")
_, state = load_state(checkpoint, dtype=np.dtype(sys.argv[2]), quantization=quantization)
print(memory("VmHWM") - before, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """120 MB of weights in four shards."""
    folder = tmp_path_factory.mktemp("large")
    state = abstract_model(parse_config(CONFIG).vlm, np.float32)[1]
    shapes = {LLAVA.to_hf(dotted(path)): leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)}
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    shard_of = dict(zip(shapes, ends * SHARDS // (ends[-1] + 1), strict=True))
    weight_map: dict[str, str] = {}
    for number in range(SHARDS):
        mine = [name for name in shapes if shard_of[name] == number]
        file = f"model-{number}.safetensors"
        safetensors.numpy.save_file({name: np.ones(shapes[name], np.float32) for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_peak_beyond_the_parameters(folder, dtype):
    run = subprocess.run([sys.executable, "-c", PROGRAM, folder, dtype], capture_output=True, text=True, check=True)
    peak, parameters = map(int, run.stdout.split())
    largest = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert parameters > 3 * largest * (0.5 if dtype == "float16" else 1)
    assert peak - parameters <= 1.2 * largest


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_float_weights_are_never_there_beside_the_quantised_ones(folder):
    command = [sys.executable, "-c", PROGRAM, folder, "float32", "int8"]
    # A heap for all threads: with one for each, what glibc keeps in them on a busy machine was up to 0.35 of the files.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peak, parameters = map(int, run.stdout.split())
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert parameters < 0.4 * stored
    assert peak - parameters <= 0.3 * stored
