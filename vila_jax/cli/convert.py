"""Writes a checkpoint in another layout, or merges a LoRA into it.

Layouts: `hf` is Hugging Face's LLaVA or LLaVA-NeXT, `vila` the three folders of VILA1.5 and NVILA, `llava` the single
folder of the original LLaVA and VILA v1. Tensors are copied one by one, bit by bit unless --lora or --dtype changes
them. DST appears when it is complete; the same command goes on where an earlier one was ended. A VILA that becomes
`hf` gets its conversation style as a chat template (--style, --era if it does not show its own).
"""

import argparse
import functools
import re
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, terminal, units
from vila_jax.cli.progress import Progress

if TYPE_CHECKING:
    from vila_jax.hf.writing import Written

SUMMARY = "write a checkpoint in another layout, or merge a LoRA"

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax convert`."""
    parser.add_argument("model", metavar="SRC", help="folder of a checkpoint, or an id on the Hugging Face Hub")
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument("--to", choices=("hf", "vila", "llava"), required=True, help="layout to write")
    arguments.add_revision(parser)
    parser.add_argument(
        "--style", metavar="NAME", help="conversation style that a VILA gets as its chat template in `hf`"
    )
    parser.add_argument("--lora", metavar="FOLDER", help="a LoRA to merge into the weights")
    parser.add_argument(
        "--dtype",
        choices=("keep", "bfloat16", "float16", "float32"),
        default="keep",
        help="to store (default: that of every tensor)",
    )
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", type=size, default=5 * 10**9, help="of one file, e.g. 500MB (default: 5GB)"
    )
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is there already")
    arguments.add_json(parser)


def size(text: str) -> int:
    """A type for bytes: `500MB`, `5 GiB`, `1000`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    count = 0 if match is None or match[2] not in _UNITS else int(float(match[1]) * _UNITS[match[2]])
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 5GiB, got {text!r}")
    return count


def run(args: argparse.Namespace) -> int:
    """Converts one checkpoint."""
    from vila_jax.errors import ConfigError
    from vila_jax.hf.checkpoint import open_checkpoint
    from vila_jax.hf.convert import convert

    if args.era is not None and args.to != "hf":
        what = "an era decides what the chat template of `--to hf` says, and nothing else"
        raise ConfigError(what, where="--era", fix="Leave it out.")
    with Progress(enabled=not args.json) as progress:
        progress.phase("looking at the checkpoint")
        written = convert(
            open_checkpoint(args.model, revision=args.revision, era=args.era),
            args.target,
            to=args.to,
            lora=args.lora,
            dtype=None if args.dtype == "keep" else args.dtype,
            style=args.style,
            max_shard_bytes=args.max_shard_size,
            overwrite=args.force,
            on_tensor=functools.partial(progress.on_tensor, verb="writing"),
        )
    if args.json:
        terminal.print_json(_summary(written))
    else:
        terminal.stdout().print(terminal.plain(closing_line(written)), soft_wrap=True)
    return 0


def _summary(written: "Written") -> dict[str, Any]:
    return {
        "folder": str(written.folder),
        "to": written.to,
        "tensors": written.tensors,
        "bytes": written.nbytes,
        "files": list(written.shards),
        "files_reused": list(written.reused),
        "weights_merged": written.merged,
        "image_token_id": written.image_token_id,
        "style": written.style,
    }


def closing_line(written: "Written") -> str:
    """One line about what was written."""
    files = len(written.shards)
    parts = [f"{written.folder}: {written.tensors:,} tensors, {units.size(written.nbytes)}"]
    parts.append(f"{files} file{'s' if files > 1 else ''}")
    if written.reused:
        parts.append(f"{len(written.reused)} of an earlier attempt")
    if written.merged:
        parts.append(f"{written.merged:,} weights merged")
    if written.image_token_id is not None:
        parts.append(f"image token {written.image_token_id}")
    if written.style is not None:
        parts.append(f"chat template: {written.style}")
    return " · ".join(parts)
