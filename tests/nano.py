"""A model with the pictures, words and files of the embedded one, but narrow and with random weights."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import configs.nano.model
from train.recipe import New
from vila_jax.hf.export import export as export_model
from vila_jax.hf.new_model import NewModel
from vila_jax.nn.vlm import VLM

VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def export_narrow(folder: pathlib.Path) -> pathlib.Path:
    """Writes the narrow model and returns its folder."""
    return export_random(configs.nano.model.new(VISION, TEXT), folder)


def export_random(new: New, folder: pathlib.Path) -> pathlib.Path:
    """Writes a model with weights with which answers depend on the picture and on every tensor."""
    model, rng = NewModel(new.config, new.files), np.random.default_rng(0)
    shapes = nnx.state(nnx.eval_shape(lambda: VLM(model.vlm, rngs=nnx.Rngs(0))))
    state = jax.tree.map(lambda x: jnp.asarray((x.ndim == 1) + 0.2 * rng.standard_normal(x.shape, np.float32)), shapes)
    export_model(model, state, folder, to="hf", dtype="bfloat16", overwrite=True)
    return folder
