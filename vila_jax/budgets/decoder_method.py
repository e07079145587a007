"""What a method inside the decoder is.

    DecoderMethod            stage `decoder`                                          sparse
    └ Dropper                visual tokens leave for good before some layers          fastv, pyramiddrop, sparsevlm

A dropper is a schedule. The layers before a *cut* read a longer sequence than those behind it; all text stays, and of
the visual tokens of a row those that the text attends to most:

    layers   0 1 | 2 3 4 5 ...        fastv:0.5,layer=2: one cut, before layer 2
    tokens   t v v v v t t | t v v t t

Lengths are known on the host (they are fractions of the number of visual tokens), which of the tokens stay is decided
on the device. `vila_jax.infer.shorten` runs a schedule.

Keys behind a cut are fewer, and a sliding window counts those that are left.

Everything of a prompt that is no text is a visual token here: patches, newline embeddings, pooled tokens.
"""

import abc
import dataclasses
from typing import ClassVar

from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.method import Method, Positions, Stage
from vila_jax.errors import BudgetError


class DecoderMethod(Method):
    """Spends less on visual tokens inside the decoder."""

    stage: ClassVar[Stage] = "decoder"

    @abc.abstractmethod
    def check(self, depth: int, keep: float | int) -> None:
        """Refuses what does not go together: the options, `keep`, and a decoder of `depth` layers.

        Raises:
          BudgetError: for a layer that does not exist it says which there are.
        """

    @abc.abstractmethod
    def ratios(self, keep: float) -> tuple[float, ...]:
        """Parts of a row's visual tokens that the method spends, stage after stage; the last one is `keep`.

        Raises:
          BudgetError: `keep` does not go with the options.
        """


@dataclasses.dataclass(frozen=True)
class Dropper(DecoderMethod):
    """Takes visual tokens away before some layers.

    A method says where (`cuts`), how many are left (`ratios`) and who rates them (`scores_ahead`, `asks_question`); one
    that merges part of what it takes away says so with `merging` and `merge`.

    Attributes:
      scores_ahead: whether the layer behind a cut scores the tokens (with all of them still there), instead of the one
        before it.
      asks_question: whether tokens of the question, that is of the text behind the last picture, rate the visual ones,
        see `raters`; otherwise the last token of the prompt does.

    Options:
      positions: behind a cut; `original` are those in front of it.
    """

    scores_ahead: ClassVar[bool] = False
    asks_question: ClassVar[bool] = False

    positions: Positions = "original"

    @abc.abstractmethod
    def cuts(self, depth: int) -> tuple[int, ...]:
        """The layers (0-based, ascending, from 1 on) of a decoder of `depth` before which tokens leave.

        Raises:
          BudgetError: a layer does not exist.
        """

    def check(self, depth: int, keep: float | int) -> None:
        self.cuts(depth)
        if isinstance(keep, float):
            self.ratios(keep)

    def raters(
        self,
        x: Float[Array, "B T D"],
        visual: Bool[Array, "B T"],
        question: Float[Array, "B R D"],
        valid: Bool[Array, "B R"],
    ) -> Bool[Array, "B R"]:
        """The tokens of the question that rate, at least one; decided once, on what the decoder reads.

        Args:
          x: all tokens.
          visual: which of them are visual.
          question: the tokens of the question.
          valid: which slots of it are used.
        """
        del x, visual, question
        return valid

    def merging(self, before: int, after: int) -> tuple[int, int]:
        """Of a cut that leaves `after` of `before` tokens: how many of those dropped are merged, and to how many.

        Merged tokens are part of the `after`.
        """
        del before, after
        return 0, 0

    def merge(
        self, x: Float[Array, "B M D"], valid: Bool[Array, "B M"], clusters: Int[Array, " B"]
    ) -> Float[Array, "B M D"]:
        """Merges dropped tokens; of each row the first `clusters` results count.

        Args:
          valid: slots of `x` that are used.
        """
        raise NotImplementedError(f"{self.name} merges nothing")


@dataclasses.dataclass(frozen=True)
class ThreeStages(Dropper):
    """Three cuts at fractions of the depth; by default the number of tokens falls by the same factor at each.

    Options:
      layer1, layer2, layer3: where they are, as fractions of the number of layers (halves are rounded up; each at least
        one layer behind the one before).
      ratio1, ratio2: part of the visual tokens behind the first and the second; one of 0 lies
        geometrically between its neighbours, of which the outer ones are 1 and KEEP, the part behind the third.
    """

    layer1: float = 0.25
    layer2: float = 0.5
    layer3: float = 0.75
    ratio1: float = 0.0
    ratio2: float = 0.0

    def __post_init__(self):
        where = f"budget method {self.name!r}"
        if not 0 <= self.layer1 <= self.layer2 <= self.layer3 < 1:
            raise BudgetError(
                f"the layers {self.layer1}, {self.layer2}, {self.layer3} are not ascending fractions of the depth",
                where=where,
                fix="Give layer1 <= layer2 <= layer3, each from 0 up to but not including 1.",
            )
        if not (0 <= self.ratio1 <= 1 and 0 <= self.ratio2 <= 1):
            raise BudgetError(
                f"the ratios are {self.ratio1} and {self.ratio2}",
                where=where,
                fix="Give parts of the visual tokens in (0, 1], or 0 for geometric steps.",
            )

    def cuts(self, depth: int) -> tuple[int, ...]:
        layers: list[int] = []
        for fraction in (self.layer1, self.layer2, self.layer3):
            layers.append(max(int(fraction * depth + 0.5), 1 + (layers[-1] if layers else 0)))
        if layers[-1] >= depth:
            raise BudgetError(
                f"three cuts do not fit: they would lie before the layers {', '.join(map(str, layers))} of a decoder "
                f"of {depth} layers, of which 1 to {depth - 1} have layers before and behind them",
                where=f"budget method {self.name!r}",
                fix="Give smaller fractions layer1, layer2, layer3." if depth > 3 else "Use fastv with layer=1.",
            )
        return tuple(layers)

    def ratios(self, keep: float) -> tuple[float, ...]:
        # Rounded, so that a third root of 0.064 is 0.4 and not a bit less.
        first, second = self.ratio1 or round(keep ** (1 / 3), 12), self.ratio2 or round(keep ** (2 / 3), 12)
        if self.ratio1 and not self.ratio2:
            second = round((self.ratio1 * keep) ** 0.5, 12)
        if self.ratio2 and not self.ratio1:
            first = round(self.ratio2**0.5, 12)
        if not first >= second >= keep:
            raise BudgetError(
                f"a cut would leave more tokens than the one before it: {first:.4g}, {second:.4g}, {keep:.4g}",
                where=f"budget method {self.name!r}",
                fix="Give ratio1 >= ratio2 >= KEEP.",
            )
        return first, second, keep
