"""Describes a checkpoint without reading its weights.

Shows the architecture, what is built of it, how many visual tokens a picture takes with and without a budget, and what
needs how much memory. Only config.json has to be there.
"""

import argparse
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, terminal, units

if TYPE_CHECKING:
    from vila_jax.budgets import Budget
    from vila_jax.hf.checkpoint import Checkpoint

_TOWERS = {"clip": "CLIP", "siglip": "SigLIP", "intern": "InternViT"}

SUMMARY = "describe a checkpoint without reading its weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax inspect`."""
    arguments.add_model(parser)
    parser.add_argument("--batch", metavar="N", type=arguments.whole(1), default=1, help="requests at once")
    parser.add_argument("--budget", metavar="SPEC", action="append", help="a budget to compare; repeat it for several")
    arguments.add_dtype(parser)
    arguments.add_quantize(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the description."""
    import jax.numpy as jnp

    from vila_jax.bench.memory import kv_bytes_per_token
    from vila_jax.cli import description
    from vila_jax.hf.load import default_dtype
    from vila_jax.model import parse_budget
    from vila_jax.quantize.spec import parse

    checkpoint, problem = _open(args.model, args.revision, args.era)
    dtype, quantization = jnp.dtype(args.dtype or default_dtype()), parse(args.quantize)
    budgets: list[Budget | None] = [None]
    budgets += [parse_budget(spec, checkpoint) for spec in args.budget or _usual_budgets(checkpoint)]
    facts = {
        "model": args.model,
        "architecture": checkpoint.config.architecture,
        "context": checkpoint.config.context_length,
        "dtype": dtype.name,
        "quantize": None if quantization is None else str(quantization),
        **description.network(checkpoint),
        "prompts": description.prompts(checkpoint, args.model),
        "era": description.era(checkpoint),
        "video": description.video(checkpoint),
        "weights": description.weights(checkpoint, problem),
        "parameters": description.parameters(checkpoint, dtype.itemsize, quantization),
        "pictures": description.visual_tokens(checkpoint, budgets),
        "memory": {
            "batch": args.batch,
            "text_tokens": description.TEXT_TOKENS,
            "new_tokens": description.NEW_TOKENS,
            "kv_bytes_per_token": kv_bytes_per_token(checkpoint.config.vlm.decoder, dtype.itemsize, quantization),
            "plans": description.memory_plans(checkpoint, budgets, args.batch, dtype, quantization),
        },
    }
    if args.json:
        terminal.print_json(facts)
    else:
        _print(facts)
    return 0


def _open(model: str, revision: str | None, era: str | None) -> "tuple[Checkpoint, str | None]":
    """The checkpoint, and what is wrong with the files of its weights, without which it can be described as well."""
    from vila_jax.errors import CheckpointError
    from vila_jax.hf.checkpoint import open_checkpoint

    try:
        return open_checkpoint(model, revision=revision, era=era), None
    except CheckpointError as error:
        return open_checkpoint(model, revision=revision, weights=False, era=era), str(error)


def _usual_budgets(checkpoint: "Checkpoint") -> list[str]:
    vlm = checkpoint.config.vlm
    if vlm.keep_class_token and vlm.vision.has_class_token:
        return []  # a budget chooses among patches
    return [f"hired:{keep}" for keep in (0.4, 0.2, 0.1)]


def _print(facts: dict[str, Any]) -> None:
    console = terminal.stdout()
    console.print(f"[bold]{facts['architecture']}[/]  context {facts['context']:,} tokens")
    for table in (_parts(facts), _parameters(facts), _pictures(facts), _memory(facts)):
        console.print()
        console.print(table)
    problems = {"weights": facts["weights"]["problem"], "tokenizer": facts["prompts"]["tokenizer_problem"]}
    for part, problem in problems.items():
        if problem is not None:
            console.print()
            console.print(terminal.bad(part), terminal.plain(problem), soft_wrap=True)


def _parts(facts: dict[str, Any]) -> Any:
    table = terminal.table(None, header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="left")
    vision, projector, decoder = facts["vision_tower"], facts["projector"], facts["decoder"]
    side = vision["image_size"] // vision["patch_size"]
    layers = ", ".join(map(str, vision["feature_layers"]))
    table.add_row(
        "vision tower",
        f"{_TOWERS[vision['kind']]}, tiles of {vision['image_size']} px in {side} x {side} "
        f"patches, width {vision['width']:,}, {vision['heads']} heads, {vision['blocks_built']} of "
        f"{vision['blocks_in_config']} blocks built (features of layer {layers})",
    )
    table.add_row(
        "projector",
        f"{projector['layers']} layers, {projector['in']:,} → {projector['out']:,}, {projector['activation']}"
        + (f", {projector['window']} x {projector['window']} patches merged" if projector["window"] > 1 else ""),
    )
    window = f", sliding window {decoder['sliding_window']:,}" if decoder["sliding_window"] else ""
    scaling = f" ({decoder['rope_scaling']})" if decoder["rope_scaling"] != "default" else ""
    table.add_row(
        "decoder",
        f"{decoder['layers']} layers, width {decoder['width']:,}, {decoder['heads']} heads of {decoder['head_dim']} "
        f"({decoder['kv_heads']} for keys and values), vocabulary {decoder['vocabulary']:,}, rope "
        f"{decoder['rope_theta']:,.0f}{scaling}{window}{', tied embeddings' if decoder['tied_embeddings'] else ''}",
    )
    prompts = facts["prompts"]
    style = f"style {' / '.join(prompts['styles'])}"
    table.add_row("conversation", style if prompts["styles"] else "chat template of the checkpoint")
    if facts["era"] is not None:
        table.add_row("era", _era(facts["era"]))
        table.add_row("video", _video(facts["video"]))
    table.add_row("special tokens", ", ".join(_token(*item) for item in prompts["special_tokens"].items()))
    table.add_row("weights", _weights(facts["weights"]))
    return table


def _era(era: dict[str, Any]) -> str:
    count = len(era["after_image"])
    behind = f", a newline of {count} token{'s'[: count > 1]} behind each" if count else ""
    return (
        f"{era['name']} ({terminal.plain(era['reason'])}): pictures as {era['pictures']}, tokens {era['token_order']}"
        f"{behind}"
    )


def _video(video: dict[str, Any]) -> str:
    rate = f" at most, {video['fps']:g} a second" if video["fps"] else ""
    frames = f"{video['frames']} frame{'s'[: video['frames'] > 1]}{rate}"
    if video["encoder"] == "basic":
        return f"{frames}, read as pictures: {video['tokens']:,} visual tokens"
    pools = " and ".join(" x ".join(map(str, size)) for size in video["pool_sizes"])
    texts = [f"{name} {video[f'{name}_tokens']!r}" for name in ("start", "end", "sep") if video[f"{name}_tokens"]]
    written = f" ({terminal.plain(', '.join(texts))})" if texts else ""
    none = terminal.bad("a pool size does not divide the frames")
    count = none if video["tokens"] is None else f"{video['tokens']:,} visual tokens"
    return f"{frames}, pooled by {pools} (TSP){written}: {count}"


def _token(kind: str, token: dict[str, Any]) -> str:
    ids = " ".join(map(str, token["ids"]))
    return f"{kind} {ids}" if token["text"] is None else f"{kind} {terminal.plain(token['text'])} ({ids})"


def _weights(weights: dict[str, Any]) -> str:
    if not weights["usable"]:
        return terminal.bad("missing or not usable, see below")
    unused = weights["tensors"] - weights["tensors_used"]
    return (
        f"{weights['files']} file{'s'[: weights['files'] > 1]}, {weights['tensors']} tensors ({unused} not needed), "
        f"{units.size(weights['bytes'])} of {' and '.join(weights['dtypes'])}"
    )


def _parameters(facts: dict[str, Any]) -> Any:
    table = terminal.table("Parameters", "part", "number", "share", facts["dtype"])
    *parts, total = facts["parameters"]
    for row in parts:
        share = f"{100 * row['parameters'] / total['parameters']:.1f} %"
        name = row["part"].replace("_", " ").replace(".", " · ")
        table.add_row(name, f"{row['parameters']:,}", share, units.size(row["bytes"]))
    table.add_section()
    table.add_row("total", f"{total['parameters']:,}", units.count(total["parameters"]), units.size(total["bytes"]))
    return table


def _pictures(facts: dict[str, Any]) -> Any:
    names = list(facts["pictures"][0]["tokens"])
    table = terminal.table("Visual tokens of a picture", "canvas", "tiles", *names)
    for row in facts["pictures"]:
        height, width = row["image_size"]
        grid = "1" if row["grid"] is None else f"{'1 + ' * row['overview']}{row['grid'][0]} x {row['grid'][1]}"
        cells = ["—" if n is None else f"{n:,}" for n in row["tokens"].values()]
        table.add_row(f"{height} x {width}", grid, *cells)
    return table


def _memory(facts: dict[str, Any]) -> Any:
    memory = facts["memory"]
    weights, per_token = facts["parameters"][-1]["bytes"], memory["kv_bytes_per_token"]
    requests = "1 request" if memory["batch"] == 1 else f"{memory['batch']} requests at once"
    table = terminal.table(
        f"Memory for {requests} ({memory['text_tokens']} text, {memory['new_tokens']} new tokens): weights "
        f"{units.size(weights)}, cache {units.size(per_token)} per token",
        *("budget", "visual", "cache", "logits", "working ≤", "total", "prefill"),
    )
    for plan in memory["plans"]:
        counts = (plan["budget"], f"{plan['visual_tokens']:,}")
        if plan["fits_context"]:
            sizes = [units.size(plan[f"{kind}_bytes"]) for kind in ("cache", "logits", "working", "total")]
            table.add_row(*counts, *sizes, units.rate(plan["prefill_flops"], "FLOP"))
        else:
            table.add_row(*counts, *"———", terminal.bad("over context"), "—")
    return table
