"""Writes a smaller dense checkpoint: without the weakest FFN channels of tower and decoder, and heads of the decoder.

Fractions are what is removed, the same in every layer; `--ffn 0.5` leaves half of the channels. What is weak shows in
the weights (--by magnitude), or in how strongly it speaks on pictures of yours (--by activation --images ...). DST has
the layout of the source, and any tool loads it. Pruned models are made to be fine-tuned: without that they lose
quality, the sooner the more is removed.
"""

import argparse
import functools
import itertools
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, terminal, units
from vila_jax.cli.convert import size
from vila_jax.cli.loading import load_model
from vila_jax.cli.progress import Progress
from vila_jax.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from vila_jax.hf.checkpoint import Checkpoint
    from vila_jax.infer.layout import Request
    from vila_jax.model import Model
    from vila_jax.nn.config import VLMConfig
    from vila_jax.prune import Pruned
    from vila_jax.prune.prune import Activations

SUMMARY = "write a smaller checkpoint without its weakest FFN channels and heads"

_QUESTION = "Describe this image in detail."
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_TEXT_TOKENS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax prune`."""
    parser.add_argument("model", metavar="MODEL", help="folder of a checkpoint, or an id on the Hugging Face Hub")
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument("--ffn", metavar="F", type=float, default=0.0, help="FFN channels to remove (default: 0)")
    parser.add_argument(
        "--vision-ffn", metavar="F", type=float, help="those of the tower, if not as many (default: as --ffn)"
    )
    parser.add_argument(
        "--heads",
        metavar="F",
        type=float,
        default=0.0,
        help="key/value heads of the decoder to remove, with the query heads that share them (default: 0)",
    )
    parser.add_argument(
        "--by", choices=("magnitude", "activation"), default="magnitude", help="what is weak (default: magnitude)"
    )
    calibration = parser.add_argument_group("calibration, for --by activation")
    calibration.add_argument("--images", metavar="F", nargs="+", default=[], help="pictures, or folders of them")
    calibration.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help=f"what is asked about a picture; several take turns (default: {_QUESTION!r})",
    )
    calibration.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="in which it is computed (default: bfloat16 on accelerators, float32 on CPUs); files keep theirs",
    )
    arguments.add_revision(parser)
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", type=size, default=5 * 10**9, help="of one file, e.g. 500MB (default: 5GB)"
    )
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is there already")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prunes one checkpoint."""
    from vila_jax.hf.checkpoint import open_checkpoint
    from vila_jax.prune import Sparsity, prune

    pictures = _pictures(args)
    sparsity = Sparsity(args.ffn, args.vision_ffn, args.heads)
    with Progress(enabled=not args.json) as progress:
        progress.phase("looking at the checkpoint")
        checkpoint = open_checkpoint(args.model, revision=args.revision, era=args.era)
        pruned = prune(
            checkpoint,
            args.target,
            sparsity,
            activations=(lambda: _activations(args, pictures, progress)) if pictures else None,
            max_shard_bytes=args.max_shard_size,
            overwrite=args.force,
            on_tensor=functools.partial(progress.on_tensor, verb="writing"),
        )
    facts = _facts(pruned, checkpoint)
    if args.json:
        terminal.print_json(facts)
    else:
        _print(facts)
    return 0


def _pictures(args: argparse.Namespace) -> list[pathlib.Path]:
    """The calibration pictures, those of a folder by name.

    Raises:
      ConfigError: pictures without a use, or none where they are needed.
      ImageError: a path that does not exist, or a folder without pictures.
    """
    if bool(args.images) != (args.by == "activation"):
        what = (
            "pictures are looked at with --by activation alone" if args.images else "there are no pictures to look at"
        )
        raise ConfigError(what, where="--images", fix="Give both --by activation and --images, or neither.")
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, args.images):
        if not path.exists():  # said before a model is loaded for them
            raise ImageError("there is no such file or folder", where=str(path), fix="Check the path.")
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise ImageError("there are no pictures here", where=str(path), fix=f"Looked for: {', '.join(_SUFFIXES)}.")
        found += inside
    return found


def _activations(args: argparse.Namespace, pictures: list[pathlib.Path], progress: Progress) -> "Activations":
    from vila_jax.cli.cache import enable_compile_cache
    from vila_jax.prune import calibrate

    enable_compile_cache()
    model = load_model(args, progress)
    return calibrate(model, _requests(model, pictures, args.prompt or [_QUESTION], progress))


def _requests(
    model: "Model", pictures: list[pathlib.Path], questions: list[str], progress: Progress
) -> "Iterator[Request]":
    for i, (picture, question) in enumerate(zip(pictures, itertools.cycle(questions)), start=1):
        progress.phase(f"calibrating: picture {i} of {len(pictures)}")
        content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": question}]
        yield model.request(messages=[{"role": "user", "content": content}], budget=None)


def _facts(pruned: "Pruned", checkpoint: "Checkpoint") -> dict[str, Any]:
    written = pruned.written
    return {
        "folder": str(written.folder),
        "layout": written.to,
        "files": list(written.shards),
        "visual_tokens": checkpoint.config.vlm.tokens_per_tile,
        "text_tokens": _TEXT_TOKENS,
        "before": _costs(pruned.before) | {"bytes": pruned.bytes_before},
        "after": _costs(pruned.after) | {"bytes": written.nbytes},
    }


def _costs(config: "VLMConfig") -> dict[str, int]:
    """Sizes, weights that are built, and operations: of a tile, and of a prompt that shows it whole."""
    from vila_jax.bench.flops import prefill_flops, tower_flops
    from vila_jax.bench.memory import parameter_counts

    return {
        "vision_ffn": config.vision.intermediate_size,
        "ffn": config.decoder.intermediate_size,
        "heads": config.decoder.num_heads,
        "kv_heads": config.decoder.num_kv_heads,
        "head_dim": config.decoder.head_dim,
        "parameters": sum(parameter_counts(config).values()),
        "tower_flops": tower_flops(config),
        "prompt_flops": prefill_flops(config, 1, config.tokens_per_tile, _TEXT_TOKENS),
    }


def _print(facts: dict[str, Any]) -> None:
    before, after = facts["before"], facts["after"]
    visual, text = facts["visual_tokens"], facts["text_tokens"]
    table = terminal.table(None, "", "before", "after", "change")

    def row(label: str, key: str, show: Any = "{:,}".format) -> None:
        change = f"{100 * (after[key] / before[key] - 1):+.1f} %" if after[key] != before[key] else "—"
        table.add_row(label, show(before[key]), show(after[key]), change)

    row("FFN channels, tower", "vision_ffn")
    row("FFN channels, decoder", "ffn")
    row("heads", "heads")
    row("key/value heads", "kv_heads")
    row("parameters", "parameters")
    row("tower, one tile", "tower_flops", lambda value: units.rate(value, "FLOP"))
    row(f"prompt, {visual} + {text} tokens", "prompt_flops", lambda value: units.rate(value, "FLOP"))
    row("files", "bytes", units.size)
    console = terminal.stdout()
    console.print(table)
    console.print(terminal.plain(facts["folder"]), soft_wrap=True)
