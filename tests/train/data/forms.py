"""Prompt forms of the golden checkpoints, for the tests of this folder."""

import io
import json

import tokenizers

from vila_jax.text.prompts import prompt_form, vila_tokenizer
from vila_jax.text.tokenizer import Tokenizer

LLAMA_3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")


def golden_forms(golden):
    """`old`: VILA1.5; `sentencepiece`, `bytelevel_bpe`, `llama_3`: NVILA with tokenizers of these kinds."""
    folder = golden / "vila" / "checkpoints"
    llama = vila_tokenizer(folder / "vila15_llama_siglip" / "llm")
    qwen = folder / "nvila_lite_qwen2_dynamic" / "llm"
    backend = json.loads((qwen / "tokenizer.json").read_text())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] < 403]
    llama_3 = Tokenizer(
        tokenizers.Tokenizer.from_str(json.dumps(backend)),
        special_tokens={"eos_token": "<|im_end|>"},
        added_tokens=(*LLAMA_3_TOKENS, "<vila/sentinel>", "<image>", "<vila/video>"),
    )
    return {
        "old": prompt_form(llama, "vila1.5"),
        "sentencepiece": prompt_form(llama, "nvila"),
        "bytelevel_bpe": prompt_form(vila_tokenizer(qwen), "nvila"),
        "llama_3": prompt_form(llama_3, "nvila"),
    }


def png(image):
    """The bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
