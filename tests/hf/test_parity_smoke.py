"""That the renamed weights mean the same: features and text logits of ours equal those of transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.hf.models import build, save
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.load import load_state

MODELS = {
    "llama gqa, head width of its own, biases": dict(
        text_args={"head_dim": 10, "attention_bias": True, "mlp_bias": True, "rope_parameters": {"rope_theta": 5e5}},
        vision_feature_layer=[-3, -2, 1],
    ),
    "llava_next, mistral, window": dict(text="mistral", next_=True, text_args={"sliding_window": 5}),
    "siglip, qwen2, tied, last layer": dict(
        vision="siglip", text="qwen2", tie_word_embeddings=True, vision_feature_layer=-1, projector_hidden_act="relu"
    ),
    "class token kept, no projector bias": dict(
        vision_feature_select_strategy="full", multimodal_projector_bias=False, vision_feature_layer=0
    ),
    "llama3 rope, window of qwen2": dict(
        text="qwen2",
        text_args={
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 3e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 3.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, state, pixels, ids):
    model = nnx.merge(graphdef, state)
    features, _ = model.encode(pixels)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None, :], ids.shape)
    hidden, _ = model.decoder(model.decoder.embed(ids), positions)
    return model.project(features), model.decoder.logits(hidden)


@pytest.mark.parametrize("name", MODELS)
def test_features_and_logits_equal_transformers(name, tmp_path):
    theirs = build(**MODELS[name])
    ours = load_state(open_checkpoint(save(theirs, tmp_path)), dtype=np.float32)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 3, 28, 28)).astype(np.float32)
    ids = rng.integers(0, 95, size=(2, 21), dtype=np.int32)
    with torch.no_grad():
        layer = theirs.config.vision_feature_layer
        states = theirs.model.vision_tower(torch.tensor(pixels), output_hidden_states=True).hidden_states
        wanted = torch.cat([states[i] for i in (layer if isinstance(layer, list) else [layer])], dim=-1)
        if theirs.config.vision_feature_select_strategy == "default":
            wanted = wanted[:, 1:]
        wanted = theirs.model.multi_modal_projector(wanted)
        logits = theirs(input_ids=torch.tensor(ids).long()).logits
    visual, scores = _forward(*ours, pixels, ids)
    np.testing.assert_allclose(visual, wanted, atol=1e-4)
    np.testing.assert_allclose(scores, logits, atol=1e-4)
