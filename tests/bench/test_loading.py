"""The benchmark of loading, on a model small enough for a test."""

import copy

from vila_jax.bench import loading
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.load import load_state


def small() -> dict:
    config = copy.deepcopy(loading.CONFIG)
    config["llm_cfg"] |= {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config["llm_cfg"] |= {"vocab_size": 97}
    config["vision_tower_cfg"] |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "image_size": 56}
    config["vision_tower_cfg"] |= {"num_attention_heads": 2}
    return config | {"hidden_size": 48, "mm_hidden_size": 32}


def test_it_writes_shards_that_load_and_a_page_that_says_what_it_took(tmp_path):
    folder = tmp_path / "checkpoint"
    loading.write_checkpoint(folder, small(), shards=5)
    assert len(list((folder / "llm").glob("model-*-of-00005.safetensors"))) == 5
    load_state(open_checkpoint(folder), dtype="bfloat16")  # complete, and of the right shapes
    [turn] = loading.measure(folder, repeats=1)
    assert min(turn.load.seconds, turn.load.peak, turn.read, turn.kept) > 0
    assert "plain read" in loading.report(folder, [turn])
