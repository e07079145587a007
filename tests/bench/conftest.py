"""Models for benches: one as narrow as can be, and one wide enough that matrix products are most of its work."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import vila_jax
from tests.nano import export_narrow
from vila_jax.bench.memory import parameter_shapes
from vila_jax.hf.config import parse_config
from vila_jax.hf.keys import LLAVA

_WIDE = {
    "model_type": "llava",
    "image_token_index": 4,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 408,
        "hidden_size": 1024,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 112,
        "patch_size": 8,
    },
}


@pytest.fixture(scope="session")
def narrow(tmp_path_factory):
    """Reads the pictures and questions of the embedded model: tiles of 36 patches."""
    return vila_jax.from_pretrained(str(export_narrow(tmp_path_factory.mktemp("bench") / "narrow")))


@pytest.fixture(scope="session")
def wide(tmp_path_factory, golden):
    """A LLaVA-1.5 of one tile of 196 patches."""
    folder = tmp_path_factory.mktemp("bench") / "wide"
    folder.mkdir()
    random = np.random.default_rng(0)
    shapes = parameter_shapes(parse_config(_WIDE).vlm)
    tensors = {LLAVA.to_hf(path): random.normal(0, 0.02, shape).astype(np.float32) for path, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_WIDE))
    pictures = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(golden / "hired_e2e" / "llava15_seed11" / name, folder)
    return vila_jax.from_pretrained(str(folder))
