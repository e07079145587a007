"""The towers against transformers' CLIP and SigLIP, at odd sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from flax import nnx

from tests.nn.oracle import close, normal, randomise, vision_config, with_weights_of
from vila_jax.nn.vit import VisionTower

CLIP = dict(
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=5,
    num_attention_heads=3,
    image_size=31,  # not a multiple of the patch: the last rows and columns belong to no patch
    patch_size=7,
    layer_norm_eps=3e-4,
)
SIGLIP = CLIP | dict(hidden_size=18, image_size=23, patch_size=5, layer_norm_eps=2e-3)
TOWERS = {
    "clip quick_gelu": ("clip", CLIP, "quick_gelu", "quick_gelu"),
    "clip gelu": ("clip", CLIP | dict(num_hidden_layers=3, patch_size=9), "gelu", "gelu"),
    "siglip gelu_tanh": ("siglip", SIGLIP, "gelu_pytorch_tanh", "gelu_tanh"),
}
CLASSES = {
    "clip": (hf.CLIPVisionConfig, hf.CLIPVisionModel),
    "siglip": (hf.SiglipVisionConfig, hf.SiglipVisionModel),
}


@functools.cache
def towers(name: str, depth: int | None = None):
    """The oracle, and the graph definition and state of ours with `depth` blocks (all by default)."""
    kind, sizes, their_act, our_act = TOWERS[name]
    config_class, model_class = CLASSES[kind]
    config = config_class(**sizes, hidden_act=their_act, attn_implementation="eager")
    oracle = randomise(model_class(config))
    sizes = vision_config(config, kind, our_act)
    depth = sizes.num_layers if depth is None else depth
    ours = with_weights_of(
        oracle,
        lambda rngs: VisionTower(sizes, depth, rngs=rngs, dtype=jnp.float32),
        "vision_tower.",
        "vision_tower.",
    )
    return oracle, *ours


@functools.partial(jax.jit, static_argnames=("graphdef", "wanted"))
def encode(graphdef, state, pixels, wanted=()):
    return nnx.merge(graphdef, state)(pixels, wanted)


def tiles(name: str, count: int = 2) -> np.ndarray:
    edge = TOWERS[name][1]["image_size"]
    return normal(count, 3, edge, edge)


def has_class(name: str) -> bool:
    return TOWERS[name][0] == "clip"


def depth_of(name: str) -> int:
    return TOWERS[name][1]["num_hidden_layers"]


def expected_states(name: str) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return towers(name)[0](torch.from_numpy(tiles(name)), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("name", TOWERS)
def test_hidden_states(name):
    _, *ours = towers(name)
    states, _ = encode(*ours, tiles(name))
    for state, expected in zip(states, expected_states(name), strict=True):
        close(state, expected, atol=2e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_smaller_tiles(name):
    """Positions lie between the trained ones, as in transformers."""
    oracle, *ours = towers(name)
    smaller = tiles(name)[:, :, :21, :21]
    states, _ = encode(*ours, smaller)
    with torch.no_grad():
        expected = oracle(torch.from_numpy(smaller), output_hidden_states=True, interpolate_pos_encoding=True)
    for state, theirs in zip(states, expected.hidden_states, strict=True):
        close(state, theirs, atol=2e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_intermediates(name):
    oracle, *ours = towers(name)
    keys, queries = [], []
    hooks = [
        projection.register_forward_hook(lambda _module, _input, output, into=into: into.append(output))
        for block in oracle.encoder.layers
        for projection, into in ((block.self_attn.k_proj, keys), (block.self_attn.q_proj, queries))
    ]
    with torch.no_grad():
        attentions = oracle(torch.from_numpy(tiles(name)), output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    own = ("cls_attention", "flat_cls_attention") if has_class(name) else ()
    kinds = ("received_attention", "flat_received_attention", "keys", *own)
    wanted = tuple(f"{kind}/{i}" for kind in kinds for i in range(depth_of(name)))
    _, found = encode(*ours, tiles(name), wanted)
    assert sorted(found) == sorted(wanted)
    for i in range(depth_of(name)):
        first = int(has_class(name))
        close(found[f"keys/{i}"], keys[i].unflatten(-1, (3, -1))[:, first:], atol=2e-5)
        close(found[f"received_attention/{i}"], attentions[i].mean(2)[:, :, first:], atol=1e-5)
        flat = (queries[i] @ keys[i].mT * keys[i].shape[-1] ** -0.5).softmax(-1)
        close(found[f"flat_received_attention/{i}"], flat.mean(1)[:, None, first:], atol=1e-5)
        if has_class(name):
            close(found[f"cls_attention/{i}"], attentions[i][:, :, 0, 1:], atol=1e-5)
            close(found[f"flat_cls_attention/{i}"], flat[:, None, 0, 1:], atol=1e-5)


def test_only_what_is_asked_for_is_returned():
    name = "clip quick_gelu"
    _, *ours = towers(name)
    assert jax.eval_shape(lambda: encode(*ours, tiles(name))[1]) == {}
    assert list(jax.eval_shape(lambda: encode(*ours, tiles(name), ("cls_attention/4",))[1])) == ["cls_attention/4"]


@pytest.mark.parametrize("depth", [0, 2])
def test_only_depth_blocks_are_built(depth):
    name = "clip quick_gelu"
    _, graphdef, state = towers(name, depth)
    assert {path[1] for path, _ in nnx.to_flat_state(state) if path[0] == "layers"} == set(range(depth))
    states, _ = encode(graphdef, state, tiles(name))
    assert len(states) == depth + 1
    close(states[-1], expected_states(name)[depth], atol=2e-5)


RECEIVED = "received_attention/i, flat_received_attention/i, keys/i with i < 5"


@pytest.mark.parametrize(
    ("name", "wanted", "has"),
    [
        *(
            ("clip quick_gelu", wanted, f"cls_attention/i, flat_cls_attention/i, {RECEIVED}")
            for wanted in ("cls_attention/5", "attention/0", "keys")
        ),
        ("siglip gelu_tanh", "flat_cls_attention/0", RECEIVED),
    ],
)
def test_unknown_intermediate(name, wanted, has):
    _, *ours = towers(name)
    with pytest.raises(ValueError, match=f"no intermediate '{wanted}': this tower has {has}"):
        encode(*ours, tiles(name), (wanted,))


def test_tiles_of_another_size():
    _, *ours = towers("clip quick_gelu")
    with pytest.raises(ValueError, match=r"tiles of \(28, 31\), expected \(31, 31\)"):
        encode(*ours, np.zeros((1, 3, 28, 31), np.float32))
