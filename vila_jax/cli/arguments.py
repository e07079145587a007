"""Arguments that several commands share, and types that check their values."""

import argparse
import math
import re
from collections.abc import Callable
from typing import Any


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, --revision and --era."""
    parser.add_argument("model", metavar="MODEL", help="folder of a checkpoint, or an id on the Hugging Face Hub")
    add_revision(parser)


def add_revision(parser: argparse.ArgumentParser) -> None:
    """--revision and --era."""
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--era",
        choices=("v1", "vila1.5", "nvila"),
        help="generation of a VILA checkpoint: order of merged tokens and form of prompts (default: what it shows)",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """--dtype."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of weights and computation (default: bfloat16 on accelerators, float32 on CPUs)",
    )


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """--quantize."""
    parser.add_argument(
        "--quantize",
        metavar="SPEC",
        help="weights and cache in fewer bits: int8, int4, fp8, int8,kv=int8, ... (default: as --dtype says)",
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    """--max-new-tokens, --stop and how tokens are chosen; see `generation`."""
    parser.add_argument("--max-new-tokens", metavar="N", type=whole(1), default=128, help="default: 128")
    parser.add_argument(
        "--stop", metavar="S", action="append", default=[], help="text that ends the answer; repeat it for several"
    )
    add_sampling(parser)


def generation(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_generation` declares, as options of `Model.answers`."""
    return {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")}


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """--temperature, --top-k, --top-p and --seed."""
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature", metavar="T", type=temperature, default=0.0, help="default: 0, always the likeliest"
    )
    sampling.add_argument("--top-k", metavar="K", type=whole(0), default=0, help="among the K likeliest tokens only")
    sampling.add_argument(
        "--top-p", metavar="P", type=probability, default=1.0, help="among the likeliest that reach P only"
    )
    sampling.add_argument("--seed", metavar="S", type=whole(0), default=0, help="default: 0")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")


def listed(text: str) -> list[str]:
    """A type for words between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def wholes(minimum: int) -> Callable[[str], list[int]]:
    """A type for whole numbers from `minimum`, between commas."""

    def read(text: str) -> list[int]:
        return [whole(minimum)(part) for part in listed(text) or [""]]

    return read


def budgets(text: str) -> list[str]:
    """A type for budgets between commas; a comma before an option (`alpha=0.5`) belongs to its budget."""
    return [part.strip() for part in re.split(r",(?!\s*\w+\s*=)", text) if part.strip()]


def whole(minimum: int) -> Callable[[str], int]:
    """A type for whole numbers from `minimum`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text!r}")
        return value

    return read


def temperature(text: str) -> float:
    """A type for 0 and positive numbers."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected 0 (greedy) or a positive number, got {text!r}")
    return value


def probability(text: str) -> float:
    """A type for numbers in (0, 1]."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a probability in (0, 1], got {text!r}")
    return value


def size(text: str) -> tuple[int, int]:
    """A type for HEIGHTxWIDTH."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels, such as 480x640, got {text!r}")
    return int(height), int(width)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
