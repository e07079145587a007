"""Tokens of the prompts of a batch, and whether they fit the model's context."""

import dataclasses
from collections.abc import Sequence

from vila_jax.errors import ContextLengthError, PromptError


@dataclasses.dataclass(frozen=True)
class Counts:
    """Tokens of one prompt: text, and visual tokens without and with the budget (an upper bound for budgets that may
    leave slots unused). Videos count what is left of them after pooling.

    `skipped` are the positions that no token has, where those that are left keep their original ones. `cached` are the
    tokens that were read before (`vila_jax.infer.prefixes`), `cached_images` the pictures that the tower need not see.
    """

    text: int
    visual_full: int
    visual_kept: int
    skipped: int = 0
    cached: int = 0
    cached_images: int = 0

    @property
    def prompt(self) -> int:
        return self.text + self.visual_kept


def check_lengths(counts: Sequence[Counts], new_tokens: int, limit: int) -> None:
    """Refuses prompts that are empty, or whose positions with those of the answer go beyond the context.

    Raises:
      PromptError: a prompt is empty.
      ContextLengthError: a prompt is too long.
    """
    for row, count in enumerate(counts):
        where = "prompt" if len(counts) == 1 else f"prompt {row}"
        if count.prompt == 0:
            raise PromptError("it is empty", where=where, fix="Write something.")
        total = count.prompt + count.skipped + new_tokens
        if total <= limit:
            continue
        skipped = f" + {count.skipped} positions that positions=original leaves free" if count.skipped else ""
        smaller = "leave positions=original out" if count.skipped else "a smaller budget"
        raise ContextLengthError(
            f"{count.text} text tokens + {count.visual_kept} visual tokens{skipped} + {new_tokens} new tokens = "
            f"{total}, but the model's context is {limit}",
            where=where,
            fix=f"Shorten the prompt, ask for fewer new tokens, use fewer pictures, or {smaller}.",
        )
