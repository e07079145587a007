"""Writing what was trained as a Hugging Face checkpoint: weights, configs, tokenizer and processor files."""

import json
from pathlib import Path
from typing import Any

from flax import nnx

from train.config import Run
from train.loop import Params, hf_config, new_trainee
from train.tokenizer import token_settings, tokenizer_files
from vila_jax.hf.export import export as export_model
from vila_jax.hf.new_model import NewModel


def export(run: Run, params: Params, folder: Path, *, dtype: str = "bfloat16") -> None:
    """Writes the model of a run (without its label heads) so that transformers' own classes load it.

    Args:
      run: the recipe.
      params: weights of its `Trainee`, as training returns them.
      folder: the checkpoint to write; an older one is replaced.
      dtype: name of the dtype to store the weights in.
    """
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: new_trainee(run)))
    state = nnx.state(nnx.merge(graphdef, params).model)
    files = {name: json.dumps(value, indent=2) + "\n" for name, value in _processor_files(run).items()}
    model = NewModel(hf_config(run), tokenizer_files() | files)
    export_model(model, state, folder, to="hf", dtype=dtype, overwrite=True)


def _processor_files(run: Run) -> dict[str, dict[str, Any]]:
    """What `LlavaNextProcessor.save_pretrained` writes; the picture part also where older releases look for it."""
    ids = token_settings()
    processor = {
        "processor_class": "LlavaNextProcessor",
        "image_processor": run.preprocessor,
        "image_token": "<image>",
        "patch_size": run.model["vision_config"]["patch_size"],
        "vision_feature_select_strategy": run.model["vision_feature_select_strategy"],
        "num_additional_image_tokens": 1,  # the class token, which the strategy then takes away again
    }
    generation = {name: ids[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "preprocessor_config.json": run.preprocessor,
        "processor_config.json": processor,
        "generation_config.json": generation,
    }
