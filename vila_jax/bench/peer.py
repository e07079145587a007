"""Ours beside transformers + PyTorch: same weights, same prompt, same machine, one run, repeats interleaved.

    python -m vila_jax.bench.peer --out docs/parity.md

A LLaVA-1.5 with random weights is written in the Hugging Face layout and loaded by both. Needs the `test` extra; this
is the one module of the package that imports torch, and nothing imports this module.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

import vila_jax
from vila_jax.bench.machine import cpu_name
from vila_jax.heap import keep_freed_memory

console = Console(stderr=True)

PROMPT = "USER: <image>\nwhat do you see in this picture ? ASSISTANT:"


@dataclasses.dataclass(frozen=True)
class Preset:
    """Shapes of a LLaVA-1.5: tower (width, depth, heads, FFN) and decoder (the same, key/value heads, vocabulary)."""

    tower: tuple[int, int, int, int]
    decoder: tuple[int, int, int, int]
    kv_heads: int
    vocabulary: int
    image_size: int = 336
    patch_size: int = 14


PRESETS = {
    "mid-0.3b": Preset(tower=(512, 12, 8, 2048), decoder=(1024, 20, 16, 2816), kv_heads=16, vocabulary=32064),
    "tiny": Preset(tower=(32, 3, 4, 64), decoder=(48, 2, 4, 96), kv_heads=2, vocabulary=128, image_size=56),
}


def write_checkpoint(preset: Preset, folder: Path) -> Any:
    """Writes a random checkpoint with tokenizer and processor files; returns the torch model."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    width, depth, heads, hidden = preset.tower
    vision = CLIPVisionConfig(
        hidden_size=width,
        num_hidden_layers=depth + 1,  # features are taken before the last block
        num_attention_heads=heads,
        intermediate_size=hidden,
        image_size=preset.image_size,
        patch_size=preset.patch_size,
    )
    width, depth, heads, hidden = preset.decoder
    text = LlamaConfig(
        vocab_size=preset.vocabulary,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=preset.kv_heads,
        intermediate_size=hidden,
        max_position_embeddings=4096,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    ).eval()
    model.save_pretrained(folder)
    words = ["<unk>", "<s>", "</s>", "<pad>", "<image>", *PROMPT.replace("<image>", "").replace(":", " :").split()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    edge = preset.image_size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": edge},
        "crop_size": {"height": edge, "width": edge},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@dataclasses.dataclass
class Side:
    """One contender: `run(new_tokens)` answers the prompt and returns the ids."""

    name: str
    run: Callable[[int], list[int]]
    prefill: list[float] = dataclasses.field(default_factory=list)
    decode: list[float] = dataclasses.field(default_factory=list)

    def measure(self, new_tokens: int) -> None:
        """One repeat: the time to the first token, and the time of each further one."""
        start = time.perf_counter()
        self.run(1)
        first = time.perf_counter() - start
        start = time.perf_counter()
        self.run(new_tokens)
        rest = time.perf_counter() - start - first
        self.prefill.append(first)
        self.decode.append(rest / (new_tokens - 1))


def contenders(folder: Path, torch_model: Any, image: Image.Image) -> tuple[list[Side], float, int]:
    """The sides, the largest difference of the logits at all positions of the prompt, and its number of tokens."""
    import torch

    model = vila_jax.from_pretrained(str(folder), dtype="float32")
    pixels = torch.from_numpy(model.preprocessor(image).pixels)
    ids = model.tokenizer.encode_prompt(PROMPT)
    count = model.count_tokens((image.height, image.width))
    at = ids.index(4)
    spliced = torch.tensor([ids[:at] + [4] * count + ids[at + 1 :]])

    def ours(budget: str | None) -> Callable[[int], list[int]]:
        def run(new_tokens: int) -> list[int]:
            answer = model.generate(PROMPT, [image], budget=budget, max_new_tokens=new_tokens, ignore_eos=True)
            assert not isinstance(answer, list)
            return list(answer.token_ids)

        return run

    @torch.inference_mode()
    def theirs(new_tokens: int) -> list[int]:
        options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None}
        out = torch_model.generate(input_ids=spliced, pixel_values=pixels, **options)
        return out[0, spliced.shape[1] :].tolist()

    with torch.inference_mode():
        reference = torch_model(input_ids=spliced, pixel_values=pixels).logits[0].numpy()
    difference = float(np.abs(model.logits(PROMPT, [image]) - reference).max())
    sides = [
        Side("vila_jax", ours(None)),
        Side("vila_jax, hired:0.2", ours("hired:0.2")),
        Side("transformers + PyTorch (sdpa)", theirs),
    ]
    return sides, difference, spliced.shape[1]


def spread(values: list[float], scale: float = 1.0) -> str:
    """Median and range."""
    low, middle, high = (f(values) * scale for f in (min, statistics.median, max))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def report(preset: str, sides: list[Side], difference: float, same: bool, settings: dict[str, Any]) -> str:
    """The page, in Markdown."""
    prefill, decode = ([statistics.median(getattr(side, phase)) for side in sides] for phase in ("prefill", "decode"))
    rows = [
        f"| {side.name} | {spread(side.prefill)} | {prefill[-1] / prefill[i]:.2f} x "
        f"| {spread([1 / t for t in side.decode])} | {decode[-1] / decode[i]:.2f} x |"
        for i, side in enumerate(sides)
    ]
    packages = ("jax", "flax", "torch", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    machine = f"{settings['cpu']}, {os.cpu_count()} cores, Python {platform.python_version()}"
    tokens, new, repeats = settings["tokens"], settings["new"], settings["repeats"]
    lines = [
        f"# Beside transformers: `{preset}`",
        "",
        f"Made by `python -m vila_jax.bench.peer --preset {preset} --out docs/parity.md`; not edited by hand.",
        "",
        f"{datetime.date.today()}, {machine}, {versions}.",
        f"float32 on both sides, batch 1, {tokens} prompt tokens, {new} generated; {repeats} repeats, "
        "interleaved, after a warm-up; median (range).",
        "",
        "| | prefill, s | against PyTorch | decode, tokens/s | against PyTorch |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"A budget of 20 % makes our prefill {prefill[0] / prefill[1]:.2f} x faster than our own full one.",
        "",
        f"Parity: largest difference of the logits at all {tokens} positions {difference:.1e}; greedy ids "
        f"{'identical' if same else 'DIFFERENT'} over {new} tokens.",
        "",
        "Prefill is the wall time of a one-token answer; preparing the picture counts on our side only. Decode is the "
        "rest of a long answer.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vila_jax.bench.peer", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="mid-0.3b")
    parser.add_argument("--new-tokens", type=int, default=65)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the page there")
    args = parser.parse_args(argv)
    keep_freed_memory()  # for both sides, as our programs do
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sides, difference, length = contenders(folder, write_checkpoint(PRESETS[args.preset], folder), image)
        tokens = {side.name: side.run(args.new_tokens) for side in sides}  # warm-up: compiles, fills caches
        for side in sides:
            side.run(1)
        for repeat in range(args.repeats):
            console.print(f"repeat {repeat + 1}/{args.repeats}")
            for side in sides:
                side.measure(args.new_tokens)
    same = tokens[sides[0].name] == tokens[sides[-1].name]
    settings = {"cpu": cpu_name(), "tokens": length, "new": args.new_tokens, "repeats": args.repeats}
    page = report(args.preset, sides, difference, same, settings)
    print(page)
    if args.out:
        args.out.write_text(page)


if __name__ == "__main__":
    main()
