"""Everything that `vila-jax inspect` says about a checkpoint, as plain data. No weight is read."""

import collections
import dataclasses
from typing import Any

import jax
import numpy as np

from vila_jax.assemble import make_form, make_style
from vila_jax.bench import flops, memory
from vila_jax.budgets import Budget, Step, layer_tokens
from vila_jax.errors import BudgetError, CheckpointError
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.config import ModelConfig
from vila_jax.hf.load import match_tensors
from vila_jax.infer.buckets import count_bucket, tile_bucket
from vila_jax.infer.decoder_plan import plan_decoder
from vila_jax.infer.layout import Planner
from vila_jax.nn.attention import choose_implementation
from vila_jax.quantize import Quantization
from vila_jax.text.slots import cache_bucket, prompt_bucket
from vila_jax.text.styles import STYLES
from vila_jax.text.vila_styles import VILA_STYLES
from vila_jax.vision.geometry import TileGeometry
from vila_jax.vision.vila import VilaPreprocessor

TEXT_TOKENS, NEW_TOKENS = 64, 128
"""What the memory plan assumes of every request."""

PHOTOS = ((1080, 1080), (1080, 1440), (1080, 1920), (1440, 1080), (500, 1500))
"""(height, width) of the pictures that are counted for models which cut a picture by its shape."""

Facts = dict[str, Any]

_PARTS = (
    "vision_tower",
    "projector",
    "newline",
    "scorer",
    "decoder.embedding",
    "decoder.layers",
    "decoder.norm",
    "decoder.head",
)  # in the order of a request


def network(checkpoint: Checkpoint) -> Facts:
    """The architecture, part by part."""
    vlm = checkpoint.config.vlm
    vision, decoder = vlm.vision, vlm.decoder
    windows = {decoder.sliding_window(layer) for layer in range(decoder.num_layers)}
    return {
        "vision_tower": {
            "kind": vision.kind,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "patches": vision.num_patches,
            "width": vision.hidden_size,
            "heads": vision.num_heads,
            "blocks_built": vlm.vision_depth,
            "blocks_in_config": vision.num_layers,
            "feature_layers": list(vlm.feature_layers),
        },
        "projector": {
            "layers": len(vlm.projector.widths) - 1,
            "window": vlm.projector.window,
            "in": vlm.projector.in_features,
            "out": vlm.projector.out_features,
            "activation": vlm.projector.hidden_act,
        },
        "decoder": {
            "layers": decoder.num_layers,
            "width": decoder.hidden_size,
            "heads": decoder.num_heads,
            "kv_heads": decoder.num_kv_heads,
            "head_dim": decoder.head_dim,
            "vocabulary": decoder.vocab_size,
            "rope_theta": decoder.rope.theta,
            "rope_scaling": decoder.rope.scaling,
            "sliding_window": min((window for window in windows if window is not None), default=None),
            "tied_embeddings": decoder.tie_embeddings,
        },
    }


def prompts(checkpoint: Checkpoint, name: str) -> Facts:
    """Special tokens, and how a conversation becomes a text. Without tokenizer files, what the config tells.

    Args:
      name: of the model or its folder, which tells its conversation style (which may have several names).
    """
    config = checkpoint.config
    ids: dict[str, list[int]] = {
        "image": [config.image_token_id],
        "bos": [] if config.bos_id is None else [config.bos_id],
        "eos": list(config.eos_ids),
        "pad": [] if config.pad_id is None else [config.pad_id],
    }
    tokens, tokenizer, problem = {}, None, None
    try:
        form = make_form(checkpoint)
        tokenizer, ids["image"] = form.tokenizer, [form.image_id]
        known = {kind: [i for i in own if i >= 0] for kind, own in ids.items()}
        tokens = {kind: tokenizer.decode(own, skip_special_tokens=False) for kind, own in known.items() if own}
    except CheckpointError as error:
        problem = str(error)
    style = make_style(checkpoint, tokenizer, name)
    has_template = tokenizer is not None and tokenizer.chat_template is not None
    table = STYLES if config.era is None else VILA_STYLES
    written = [] if has_template and config.era is None else [key for key, known in table.items() if known is style]
    return {
        "special_tokens": {kind: {"ids": own, "text": tokens.get(kind)} for kind, own in ids.items() if own},
        "chat_template": has_template,
        "styles": written,
        "tokenizer_problem": problem,
    }


def era(checkpoint: Checkpoint) -> Facts | None:
    """Which generation of VILA a checkpoint is taken for, why, and what follows from it; None for LLaVA."""
    config = checkpoint.config
    if config.era is None or config.pictures is None:
        return None
    try:
        after = list(make_form(checkpoint).after_image)
    except CheckpointError:
        after = []
    return {
        "name": config.era,
        "reason": config.era_reason,
        "pictures": config.pictures.mode,
        "token_order": "column by column" if config.pictures.column_major else "row by row",
        "after_image": after,
    }


def video(checkpoint: Checkpoint) -> Facts | None:
    """How a video of VILA becomes visual tokens, and how many; None for LLaVA.

    `tokens` is None where the checkpoint's own number of frames cannot be pooled.
    """
    config = checkpoint.config
    video, tsp = config.video, config.video.tsp
    if config.pictures is None:
        return None
    facts: Facts = {"encoder": "basic" if tsp is None else "tsp", "frames": video.num_frames, "fps": video.fps}
    side = config.pictures.cells
    if tsp is None:
        return {**facts, "tokens": video.num_frames * side**2}
    whole = all(video.num_frames % frames == 0 for frames, _, _ in tsp.pool_sizes)
    return {**facts, "tokens": tsp.num_tokens(video.num_frames, side) if whole else None, **dataclasses.asdict(tsp)}


def parameters(checkpoint: Checkpoint, itemsize: int, quantization: Quantization | None = None) -> list[Facts]:
    """Number and bytes of the parameters that are built, by part, and their sum."""
    counts = memory.parameter_counts(checkpoint.config.vlm)
    counts = {part: counts[part] for part in _PARTS if part in counts}
    sizes = memory.weight_bytes(checkpoint.config.vlm, itemsize, quantization)
    rows = [{"part": part, "parameters": n, "bytes": sizes[part]} for part, n in counts.items()]
    return [*rows, {"part": "total", "parameters": sum(counts.values()), "bytes": sum(row["bytes"] for row in rows)}]


def weights(checkpoint: Checkpoint, problem: str | None) -> Facts:
    """What the headers of the files tell, and whether every tensor is accounted for.

    Args:
      problem: why the files could not be opened, if they could not.
    """
    infos = [info for shard in checkpoint.shards.values() for info in shard.tensors.values()]
    used = 0
    if problem is None:
        try:
            used = len(match_tensors(checkpoint, dict(memory.parameter_shapes(checkpoint.config.vlm))))
        except CheckpointError as error:
            problem = str(error)
    return {
        "usable": problem is None,
        "problem": problem,
        "files": len(checkpoint.shards),
        "tensors": len(infos),
        "tensors_used": used,
        "bytes": checkpoint.nbytes,
        "dtypes": sorted(collections.Counter(info.dtype for info in infos)),
    }


def pictures(checkpoint: Checkpoint) -> list[TileGeometry]:
    """One picture for every way in which the model cuts pictures into tiles, filling its canvas."""
    config = checkpoint.config
    if config.pictures is not None:
        sizes = PHOTOS if config.pictures.mode in ("dynamic", "dynamic_s2") else PHOTOS[:1]
        return [VilaPreprocessor(config.pictures).geometry(size) for size in sizes]
    side, tile = config.vlm.vision.side, config.vlm.vision.image_size
    if config.grid_pinpoints is None:
        return [TileGeometry(side, (tile, tile))]
    return [TileGeometry(side, (h, w), (h // tile, w // tile)) for h, w in config.grid_pinpoints]


def visual_tokens(checkpoint: Checkpoint, budgets: list[Budget | None]) -> list[Facts]:
    """Tiles and visual tokens of each kind of picture, under each budget; None where the budget cannot be met."""
    planner = Planner(checkpoint.config, "float32", 0)
    rows = []
    for geometry in pictures(checkpoint):
        kept = {budget_name(budget): _count(planner, geometry, budget) for budget in budgets}
        rows.append(
            {
                "image_size": geometry.image_size,
                "grid": geometry.grid,
                "overview": geometry.has_overview,
                "tiles": geometry.num_tiles,
                "tokens": kept,
            }
        )
    return rows


def _count(planner: Planner, geometry: TileGeometry, budget: Budget | None) -> int | None:
    try:
        visual = planner.visual_count(geometry, budget)
        if budget is not None:
            layer_tokens(budget.step("decoder"), planner.config.vlm.decoder.num_layers, visual)  # asks for too many?
    except BudgetError:
        return None
    return visual


def memory_plans(
    checkpoint: Checkpoint,
    budgets: list[Budget | None],
    batch: int,
    dtype: np.dtype,
    quantization: Quantization | None = None,
) -> list[Facts]:
    """Memory and work of a batch of requests with the picture of most tokens, for each budget that it can meet."""
    config = checkpoint.config
    vlm, planner = config.vlm, Planner(config, dtype.name, 0)
    geometry = max(pictures(checkpoint), key=lambda own: planner.visual_count(own, None))
    rows, tiles = count_bucket(batch), tile_bucket([planner.tower_tiles(geometry)] * batch, planner.max_tower_tiles)
    flash = choose_implementation(dtype, vlm.decoder.head_dim, jax.default_backend()) != "xla"
    plans = []
    for budget in budgets:
        visual = _count(planner, geometry, budget)
        if visual is None:
            continue
        prompt = visual + TEXT_TOKENS
        facts: Facts = {"budget": budget_name(budget), "visual_tokens": visual, "prompt_tokens": prompt}
        positions = planner.visual_span(geometry, budget) + TEXT_TOKENS + NEW_TOKENS
        facts["fits_context"] = positions <= config.context_length
        if facts["fits_context"]:
            step = None if budget is None else budget.step("decoder")
            length = prompt_bucket(prompt, config.context_length)
            plan = memory.memory_plan(
                vlm,
                itemsize=dtype.itemsize,
                batch=rows,
                tiles=tiles,
                prompt=length,
                cache_length=_cache_lengths(config, step, visual, length),
                flash=flash,
                quantization=quantization,
            )
            work = flops.prefill_flops(vlm, planner.tower_tiles(geometry), visual, TEXT_TOKENS, step)
            facts |= {
                "cache_bytes": plan.cache,
                "logits_bytes": plan.logits,
                "working_bytes": plan.working,
                "total_bytes": plan.total,
                "prefill_flops": batch * work,
            }
        plans.append(facts)
    return plans


def _cache_lengths(config: ModelConfig, step: Step | None, visual: int, padded: int) -> tuple[int, ...]:
    """Lengths of the caches of all layers, for a prompt that is padded to `padded`."""
    depth = config.vlm.decoder.num_layers
    length = max(cache_bucket(visual + TEXT_TOKENS + NEW_TOKENS, config.context_length), padded)
    if step is None:
        return (length,) * depth
    return plan_decoder(
        step,
        depth,
        [(TEXT_TOKENS, visual)],
        batch=1,
        full=(padded, length),
        question=TEXT_TOKENS,
        new_tokens=NEW_TOKENS,
        limit=config.context_length,
    ).cache_lengths


def budget_name(budget: Budget | None) -> str:
    """How a budget is called in a table."""
    return "all" if budget is None else str(budget)
