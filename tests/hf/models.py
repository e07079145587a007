"""Tiny Hugging Face models with random weights and odd sizes: the oracles of this room."""

import pathlib

import torch
import transformers as hf

VISION = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_VISION_CONFIGS = {"clip": hf.CLIPVisionConfig, "siglip": hf.SiglipVisionConfig}
_TEXT_CONFIGS = {"llama": hf.LlamaConfig, "mistral": hf.MistralConfig, "qwen2": hf.Qwen2Config}


def build(vision: str = "clip", text: str = "llama", *, next_: bool = False, vision_args=None, text_args=None, **top):
    """A LLaVA (or LLaVA-NeXT) of the named parts; every weight is random, those that start as ones or zeros too."""
    config_class = hf.LlavaNextConfig if next_ else hf.LlavaConfig
    model_class = hf.LlavaNextForConditionalGeneration if next_ else hf.LlavaForConditionalGeneration
    if vision == "siglip":
        top = {"vision_feature_select_strategy": "full", **top}
    if next_:
        top = {"image_grid_pinpoints": [[28, 56], [56, 28]], **top}
    config = config_class(
        vision_config=_VISION_CONFIGS[vision](**VISION | (vision_args or {})),
        text_config=_TEXT_CONFIGS[text](**TEXT | (text_args or {})),
        image_token_index=96,
        **top,
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def save(model, folder: pathlib.Path, **options) -> pathlib.Path:
    model.save_pretrained(folder, **options)
    return folder
