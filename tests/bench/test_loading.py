"""The checkpoints that loading is measured with: complete, sharded, of both layouts."""

import sys

import pytest

from vila_jax.bench import loading, presets
from vila_jax.errors import VilaError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.load import load_state

_SMALL = presets._vila(
    presets._siglip(56)
    | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2},
    presets._decoder("llama", 48, 64, 2, 4, 97),
    "mlp_downsample_2x2_fix",
)


@pytest.mark.parametrize(("config", "part"), [(_SMALL, "llm"), (presets.preset_json("tiny"), "")])
def test_it_writes_shards_that_load(tmp_path, config, part):
    folder = tmp_path / "checkpoint"
    loading.write_checkpoint(folder, config, shards=3)
    assert len(list((folder / part).glob("model-*-of-00003.safetensors"))) == 3
    load_state(open_checkpoint(folder), dtype="bfloat16")  # complete, and of the right shapes
    once = loading.load_once(folder, "bfloat16")
    assert once.seconds > 0 and loading.load_once(folder, "bfloat16", mmap=True).seconds > 0
    assert loading.plain_read(folder) > 0 and loading.read_once(folder).seconds > 0


def test_a_load_that_fails_says_why(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho loading >&2\necho too little memory >&2\nexit 3\n")
    python.chmod(0o755)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(VilaError, match="ended with 3: too little memory"):
        loading.measure_load("broken", tmp_path, "bfloat16", 1)
