"""Compiling a model's programs ahead of the first request."""

import dataclasses
from collections.abc import Sequence

from PIL import Image

from vila_jax.errors import PromptError
from vila_jax.infer.layout import Request
from vila_jax.infer.sampler import SamplingOptions
from vila_jax.model import Model, parse_budget

_TEXT = 32
_GREEDY = SamplingOptions()


@dataclasses.dataclass(frozen=True)
class Warmed:
    """What is compiled now.

    Attributes:
      budget: None for all visual tokens.
      bucket: tokens that prompts are padded to.
      cache: entries of the cache of the first layer.
      compile_time: seconds; next to nothing where the compile cache held the programs.
    """

    budget: str | None
    bucket: int
    cache: int
    compile_time: float


def warm_up(
    model: Model,
    buckets: Sequence[int] | None = None,
    *,
    budgets: Sequence[str | None] = (None,),
    image_size: tuple[int, int] | None = None,
    new_tokens: int = 128,
    batch: int = 1,
    sampling: SamplingOptions = _GREEDY,
) -> list[Warmed]:
    """Compiles tower, visual tokens, prefill and decode for prompts of these sizes; runs nothing, and needs no weights.

    Args:
      buckets: lengths of prompts, visual tokens included, that are rounded up to what is compiled; by default one
        picture and a short question.
      budgets: each is compiled with every bucket.
      image_size: (height, width) of the picture in the prompts; one tile by default, none with (0, 0).
      new_tokens: that requests will ask for, which decides the length of the cache.
      batch: prompts at once.
      sampling: how requests will sample: by likelihood alone, from all tokens or from some are programs of their own.

    Raises:
      PromptError: a bucket is shorter than the visual tokens alone.
      ContextLengthError: a bucket and `new_tokens` do not fit the context.
      BudgetError: a budget cannot be met.
    """
    warmed, word = [], model.request("a").token_ids[-1]
    for budget in budgets:
        request, chosen = _shortest(model, budget, image_size), parse_budget(budget, model.checkpoint)
        [row], _ = model.engine.planner.rows([request], chosen, new_tokens)
        shortest = row.count.prompt
        for bucket in buckets or [shortest + _TEXT]:
            if bucket < shortest:
                raise PromptError(
                    f"a picture and what stands around it are {shortest} tokens",
                    where=f"bucket {bucket}",
                    fix=f"Ask for at least {shortest}, for a smaller budget, or for text alone (image size 0x0).",
                )
            filled = Request([*request.token_ids, *[word] * (bucket - shortest)], request.media)
            warmed.append(_compile(model, [filled] * batch, budget, new_tokens, sampling))
    return warmed


def _shortest(model: Model, budget: str | None, image_size: tuple[int, int] | None) -> Request:
    """A prompt of a picture alone, or of a word."""
    if image_size == (0, 0):
        return model.request("a", budget=budget)
    height, width = image_size or (model.preprocessor.config.tile_size,) * 2
    return model.request("<image>", [Image.new("RGB", (width, height), "gray")], budget=budget)


def _compile(
    model: Model, requests: list[Request], budget: str | None, new_tokens: int, sampling: SamplingOptions
) -> Warmed:
    engine, chosen = model.engine, parse_budget(budget, model.checkpoint)
    layout = engine.planner.layout(requests, chosen, new_tokens)
    run = engine.generate(requests, [sampling] * len(requests), new_tokens, budget=chosen, end_tokens=model.end_tokens)
    run.compile()
    return Warmed(budget, layout.prompts.token_ids.shape[1], layout.cache_lengths[0], run.timings.compile)
