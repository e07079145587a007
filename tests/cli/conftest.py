"""A model small enough to be asked dozens of times, written in the layout of published checkpoints."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from vila_jax.bench.memory import parameter_shapes
from vila_jax.cli.main import main
from vila_jax.hf.config import parse_config
from vila_jax.hf.keys import LLAVA

_CONFIG = {
    "model_type": "llava",
    "image_token_index": 4,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 408,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
    },
}
_NEXT = {"model_type": "llava_next", "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]]}
_PICTURES = {
    "do_resize": True,
    "size": {"shortest_edge": 28},
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
    "do_normalize": True,
}


def _write(folder, config, pictures, tokenizer):
    folder.mkdir()
    random = np.random.default_rng(0)
    shapes = parameter_shapes(parse_config(config).vlm)
    tensors = {LLAVA.to_hf(path): random.normal(0, 0.3, shape).astype(np.float32) for path, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    return folder


@pytest.fixture(scope="session")
def llava(tmp_path_factory, golden):
    """LLaVA-1.5: 16 patches, 512 positions."""
    folder = tmp_path_factory.mktemp("models") / "llava"
    return _write(folder, _CONFIG, _PICTURES, golden / "hired_e2e" / "llava15_seed11")


@pytest.fixture(scope="session")
def llava_next(tmp_path_factory, golden):
    """LLaVA-NeXT: tiles of 16 patches."""
    folder = tmp_path_factory.mktemp("models") / "llava_next"
    pictures = _PICTURES | {"image_grid_pinpoints": _NEXT["image_grid_pinpoints"]}
    return _write(folder, _CONFIG | _NEXT, pictures, golden / "hired_e2e" / "llava_next_seed12")


@pytest.fixture(scope="session")
def photo(golden):
    """A photo of 400 x 400 pixels."""
    return golden / "hired_e2e" / "next_2x2_astronaut_400x400.png"


@pytest.fixture(scope="session")
def wide_photo(tmp_path_factory, golden):
    """A photo of 320 x 107 pixels."""
    path = tmp_path_factory.mktemp("photos") / "wide.png"
    with Image.open(golden / "hired_e2e" / "llava15_china.png") as image:
        image.convert("RGB").crop((0, 50, 320, 157)).save(path)
    return path


@pytest.fixture
def vila_jax_cli(capsys):
    """Runs the command line in this process: `code, stdout, stderr = vila_jax_cli("ask", ...)`."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
