"""Whole tiny checkpoints, written the way Hugging Face writes them: random weights, tokenizer, processor files."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import tokenizers as tk
import transformers as hf
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.hf.models import VISION, build

BOS, EOS, PAD, IMAGE = 1, 2, 3, 96
VOCABULARY = {"<unk>": 0, "<s>": BOS, "</s>": EOS, "<pad>": PAD} | {f"w{i}": i for i in range(4, 96)}


@dataclasses.dataclass(frozen=True)
class Written:
    """A checkpoint folder, and the Hugging Face objects that it was written from."""

    folder: pathlib.Path
    model: Any
    processor: Any


def write(
    folder: pathlib.Path, vision: str = "clip", text: str = "llama", *, next_: bool = False, **options
) -> Written:
    """Writes a checkpoint; `options` are those of `tests.hf.models.build`."""
    model = build(vision, text, next_=next_, **options)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    model.save_pretrained(folder)
    made = _processor(vision, next_, model.config, VISION | (options.get("vision_args") or {}))
    made.save_pretrained(folder)
    return Written(folder, model, made)


def _tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token a word, `<s>` in front."""
    backend = tk.Tokenizer(tk.models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tk.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    made = hf.PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **names)
    made.add_special_tokens({"extra_special_tokens": ["<image>"]})
    assert made.convert_tokens_to_ids("<image>") == IMAGE
    return made


def _processor(vision: str, next_: bool, config: Any, sizes: dict[str, Any]):
    edge = sizes["image_size"]
    if vision == "siglip":
        images = SiglipImageProcessorPil(size={"height": edge, "width": edge})
    else:
        tile = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
        pinpoints = {"image_grid_pinpoints": config.image_grid_pinpoints} if next_ else {}
        images = (LlavaNextImageProcessorPil if next_ else CLIPImageProcessorPil)(**tile, **pinpoints)
    return (hf.LlavaNextProcessor if next_ else hf.LlavaProcessor)(
        image_processor=images,
        tokenizer=_tokenizer(),
        patch_size=sizes["patch_size"],
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(vision == "clip"),
    )


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth picture; nearby patches differ."""
    small = np.random.default_rng((seed, height, width)).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
