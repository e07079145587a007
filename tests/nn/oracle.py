"""Hugging Face modules with random weights, and our modules with the same weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from vila_jax.hf.keys import LLAVA, canonical
from vila_jax.nn.config import DecoderConfig, RopeConfig, VisionConfig
from vila_jax.nn.params import abstract, dotted

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random, those that start as ones or zeros too, and large enough that no attention is flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def with_weights_of(
    source: torch.nn.Module, build: Callable[[nnx.Rngs], nnx.Module], part: str = "", hf_part: str = ""
) -> tuple[nnx.GraphDef, nnx.State]:
    """One of our modules with the weights of Hugging Face's; `part` and `hf_part` say where in a LLaVA they belong."""
    tensors = {canonical(hf_part + name): tensor for name, tensor in source.state_dict().items()}
    graphdef, state = abstract(build)
    filled = []
    for path, leaf in nnx.to_flat_state(state):
        tensor = jnp.asarray(tensors[LLAVA.to_hf(part + dotted(path)) or ""].numpy())
        assert tensor.shape == leaf.shape, (path, tensor.shape)
        filled.append((path, leaf.replace(tensor)))
    return graphdef, nnx.from_flat_state(filled)


def vision_config(config, kind: str, act: str) -> VisionConfig:
    return VisionConfig(
        kind=kind,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_act=act,
        norm_eps=config.layer_norm_eps,
    )


def decoder_config(config, rope: RopeConfig, act: str = "silu", windows: tuple = ()) -> DecoderConfig:
    bias = getattr(config, "attention_bias", False)
    return DecoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        norm_eps=config.rms_norm_eps,
        max_position=config.max_position_embeddings,
        rope=rope,
        hidden_act=act,
        qkv_bias=bias or config.model_type == "qwen2",
        out_bias=bias,
        mlp_bias=getattr(config, "mlp_bias", False),
        tie_embeddings=config.tie_word_embeddings,
        sliding_windows=windows,
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def close(ours: jax.Array, theirs: torch.Tensor | np.ndarray, atol: float = 1e-4) -> None:
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=atol, rtol=1e-5)
