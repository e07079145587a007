"""The model's phases: features against transformers' LLaVA, the splice against a loop over tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from flax import nnx

from tests.nn.oracle import close, decoder_config, normal, randomise, vision_config, with_weights_of
from vila_jax.nn.config import ProjectorConfig, RopeConfig, VLMConfig
from vila_jax.nn.vlm import VLM

TOWER = dict(hidden_size=12, intermediate_size=10, num_hidden_layers=4, image_size=15, patch_size=5)
TEXT = dict(vocab_size=31, hidden_size=16, intermediate_size=12, num_hidden_layers=1, max_position_embeddings=64)
# name: tower, feature layer and selection as in a config.json, what they mean
FEATURES = {
    "one layer": ("clip", -2, "default", (3,), False),
    "several layers, not in order": ("clip", [-2, 1, -1], "default", (3, 1, 4), False),
    "class token kept, several layers": ("clip", [0, -3], "full", (0, 2), True),
    "siglip": ("siglip", [-1, 2], "full", (4, 2), False),
}


@functools.cache
def models(tower: str, feature_layer: int | tuple[int, ...], select: str, has_newline: bool):
    """The oracle and its config."""
    vision_class = {"clip": hf.CLIPVisionConfig, "siglip": hf.SiglipVisionConfig}[tower]
    config_class = hf.LlavaNextConfig if has_newline else hf.LlavaConfig
    model_class = hf.LlavaNextForConditionalGeneration if has_newline else hf.LlavaForConditionalGeneration
    config = config_class(
        vision_config=vision_class(**TOWER, num_attention_heads=3),
        text_config=hf.LlamaConfig(**TEXT, num_attention_heads=4, num_key_value_heads=4),
        vision_feature_layer=feature_layer if isinstance(feature_layer, int) else list(feature_layer),
        vision_feature_select_strategy=select,
        image_token_index=30,
    )
    return randomise(model_class(config)), config


def build(tower, feature_layer, select, feature_layers, keep_class_token, has_newline=False):
    """The oracle, the graph definition and the state of ours, and our config."""
    hashable = feature_layer if isinstance(feature_layer, int) else tuple(feature_layer)
    oracle, config = models(tower, hashable, select, has_newline)
    act = {"clip": "quick_gelu", "siglip": "gelu_tanh"}[tower]
    ours = VLMConfig(
        vision=vision_config(config.vision_config, tower, act),
        projector=ProjectorConfig((12 * len(feature_layers), 16, 16)),
        decoder=decoder_config(config.text_config, RopeConfig()),
        feature_layers=feature_layers,
        keep_class_token=keep_class_token,
        has_newline=has_newline,
    )
    return oracle, *with_weights_of(oracle, lambda rngs: VLM(ours, rngs=rngs)), ours


@pytest.mark.parametrize("name", FEATURES)
def test_image_features(name):
    oracle, graphdef, state, config = build(*FEATURES[name])
    pixels = normal(3, 3, 15, 15)

    @jax.jit
    def features(state, pixels):
        model = nnx.merge(graphdef, state)
        return model.project(model.merge(model.encode(pixels)[0]))

    ours = features(state, pixels)
    with torch.no_grad():
        expected = torch.stack(oracle.model.get_image_features(torch.from_numpy(pixels)).pooler_output)
    close(ours, expected, atol=2e-5)
    assert ours.shape[1] == config.tokens_per_tile


@pytest.mark.parametrize("name", FEATURES)
def test_blocks_after_the_last_feature_layer_are_not_built(name):
    _, _, state, config = build(*FEATURES[name])
    built = {path[2] for path, _ in nnx.to_flat_state(state) if path[:2] == ("vision_tower", "layers")}
    assert built == set(range(max(config.feature_layers)))


def test_splice():
    """Two prompts of unequal length: two pictures with a newline after each row in one, text alone in the other."""
    oracle, graphdef, state, _ = build("clip", -2, "default", (3,), False, has_newline=True)
    visual = normal(8, 16)  # two pictures of two rows of two tokens
    newline = 8
    source = np.full((2, 17), -1)
    source[0, 1:7] = [0, 1, newline, 2, 3, newline]
    source[0, 9:15] = [4, 5, newline, 6, 7, newline]
    ids = np.random.default_rng(0).integers(0, 31, source.shape)

    @jax.jit
    def splice(state, ids, source, visual):
        model = nnx.merge(graphdef, state)
        return model.splice(ids, source, model.with_newline(visual))

    expected = np.zeros((2, 17, 16), np.float32)
    text = oracle.get_input_embeddings().weight.detach().numpy()
    for b, t in np.ndindex(source.shape):
        if source[b, t] < 0:
            expected[b, t] = text[ids[b, t]]
        elif source[b, t] == newline:
            expected[b, t] = oracle.model.image_newline.detach().numpy()
        else:
            expected[b, t] = visual[source[b, t]]
    np.testing.assert_array_equal(splice(state, jnp.asarray(ids), jnp.asarray(source), jnp.asarray(visual)), expected)


def test_without_newline_the_table_is_unchanged():
    _, graphdef, state, _ = build(*FEATURES["one layer"])
    visual = normal(4, 16)
    np.testing.assert_array_equal(nnx.merge(graphdef, state).with_newline(jnp.asarray(visual)), visual)


def test_two_pictures_in_one_prompt():
    """From pixels to logits."""
    oracle, graphdef, state, config = build(*FEATURES["class token kept, several layers"])
    pixels, per_picture = normal(2, 3, 15, 15), config.tokens_per_tile
    ids = np.array([[3, *[30] * per_picture, 7, *[30] * per_picture, 4, 9]])
    source = np.where(ids == 30, np.cumsum(ids == 30) - 1, -1)

    @jax.jit
    def logits(state, pixels, ids, source):
        model = nnx.merge(graphdef, state)
        visual = model.project(model.merge(model.encode(pixels)[0]))
        embedded = model.splice(ids, source, visual.reshape(-1, visual.shape[-1]))
        return model.decoder.logits(model.decoder(embedded, jnp.arange(ids.shape[1])[None, :])[0])

    with torch.no_grad():
        expected = oracle(input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels)).logits
    close(logits(state, pixels, jnp.asarray(ids), jnp.asarray(source)), expected)
