"""Sparse attention: all visual tokens stay, but a layer attends to the few that matter to it.

In the spirit of FlexAttention (arXiv 2407.20228, ECCV 2024), where each layer picks high-resolution tokens by an
attention map; its code was not read, and its second, coarser picture has no counterpart here. From layer `layer` on:

1. the last token of the prompt scores all visual tokens: its row of attention in *this* layer, averaged over heads;
2. the best `int(n * KEEP)` of a row's `n` visual tokens are the visual keys of this layer, for all its queries. A query
   further sees itself and all text before it, as always;
3. every generated token chooses anew, in every layer, by its own attention.

Nothing is dropped: hidden states, positions and caches are as long as without a budget, each layer may look at other
tokens, and so may each word of the answer. What is saved is attention alone, `T * (T + 1) / 2` pairs of a query and a
key against `T * S` with `S` the text and the chosen, and in decoding the reading of values. That is a small part of the
work unless prompts are long: methods that drop tokens save more, this one loses less.
"""

import dataclasses
from typing import ClassVar

from vila_jax.budgets.decoder_method import DecoderMethod
from vila_jax.errors import BudgetError


@dataclasses.dataclass(frozen=True)
class Sparse(DecoderMethod):
    """Sparse attention to visual tokens.

    Options:
      layer: the first layer (0-based) that attends sparsely.
    """

    name: ClassVar[str] = "sparse"

    layer: int = 2

    def check(self, depth: int, keep: float | int) -> None:
        del keep
        if not 0 <= self.layer < depth:
            raise BudgetError(
                f"layer {self.layer} does not exist in a decoder of {depth} layers",
                where="option layer of budget method 'sparse'",
                fix=f"Give a number from 0 to {depth - 1}.",
            )

    def ratios(self, keep: float) -> tuple[float, ...]:
        return (keep,)
