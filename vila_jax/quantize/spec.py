"""What the user asks for: the format of weights, which of them, the format of the cache.

int8                            weights of the decoder's products in eight bits, a scale for every output channel
int4                            in four bits, a scale for every 128 inputs
int4,group=64                   for every 64
fp8                             in eight bits of floating point (e4m3)
int8,parts=decoder+head         other parts: decoder, head, embedding, projector, tower
int8,kv=int8                    keys and values in eight bits, too
kv=int8                         these alone
int8,force                      also on devices where it is slower than without
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import get_args

from vila_jax.errors import QuantizationError
from vila_jax.nn.quantized import FORMATS, Kind

PARTS: dict[str, re.Pattern[str]] = {
    "decoder": re.compile(r"decoder\.layers\.\d+\.(attn|mlp)\.\w+\.weight"),
    "head": re.compile(r"decoder\.head"),
    "embedding": re.compile(r"decoder\.embedding"),
    "projector": re.compile(r"projector\.layers\.\d+\.weight"),
    "tower": re.compile(r"vision_tower\.layers\.\d+\.(attn\.(q|k|v|qkv|out)|fc1|fc2)\.weight"),
}
"""Part of a model -> the names of its weights that can be quantised: those of products. Norms and biases stay."""

_KINDS = get_args(Kind)
_SHAPE = "FORMAT[,parts=PART+PART][,group=N][,kv=int8][,force], for example int8 or int4,kv=int8"
_OPTIONS = ("parts", "group", "kv")
_FORCE = "force"


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How a model is kept in fewer bits; hashable.

    Attributes:
      weights: their format; None leaves them as they are.
      parts: names of `PARTS`.
      group: inputs that share a scale, at most; None for the format's own number.
      kv: format of keys and values; None for the dtype of computation.
      force: whether it is wanted even where it is slower.

    Raises:
      QuantizationError: an unknown format or part, a group of nothing, or nothing at all is asked for.
    """

    weights: Kind | None = None
    parts: tuple[str, ...] = ("decoder",)
    group: int | None = None
    kv: Kind | None = None
    force: bool = False

    def __post_init__(self):
        if self.weights is None and self.kv is None:
            raise QuantizationError("it says neither of weights nor of the cache", where="quantize", fix=_write())
        if self.weights is not None:
            _known(self.weights, _KINDS, "format")
        elif self.parts != ("decoder",) or self.group is not None:
            raise QuantizationError("parts and group are of weights, and no format is given", fix=_write())
        if self.kv is not None:
            _known(self.kv, ("int8",), "format of keys and values")
        for part in self.parts:
            _known(part, PARTS, "part")
        if not self.parts or (self.group is not None and self.group < 1):
            raise QuantizationError("parts and groups have one member at least", where="quantize", fix=_write())

    @classmethod
    def parse(cls, text: str) -> "Quantization":
        """Reads a spec; `str(quantization)` writes it.

        Raises:
          QuantizationError: the text is malformed, or names what there is not.
        """
        words = [word.strip() for word in text.split(",")]
        weights = None
        if "=" not in words[0]:
            weights = _known(words.pop(0), _KINDS, "format")
        found: dict[str, str] = {}
        for word in words:
            name, equals, value = (piece.strip() for piece in word.partition("="))
            _known(name, (*_OPTIONS, _FORCE), "option")
            if name in found or bool(equals) == (name == _FORCE):
                raise QuantizationError(f"malformed option {word!r}", where=f"quantize {text!r}", fix=_write())
            found[name] = value
        group = found.get("group")
        if group is not None and not group.isdecimal():
            raise QuantizationError(f"group is {group!r}, which is no whole number", where=f"quantize {text!r}")
        parts = tuple(part.strip() for part in found.get("parts", "decoder").split("+"))
        kv = found.get("kv")
        return cls(
            weights,  # type: ignore[arg-type]
            tuple(dict.fromkeys(parts)),
            None if group is None else int(group),
            kv,  # type: ignore[arg-type]
            _FORCE in found,
        )

    def __str__(self) -> str:
        words = [] if self.weights is None else [str(self.weights)]
        words += [f"parts={'+'.join(self.parts)}"] if self.parts != ("decoder",) else []
        words += [f"group={self.group}"] if self.group is not None else []
        words += [f"kv={self.kv}"] if self.kv is not None else []
        return ",".join([*words, *([_FORCE] if self.force else [])])

    @property
    def own_group(self) -> int | None:
        """Inputs that share a scale, at most; None for all of them."""
        return self.group if self.group is not None or self.weights is None else FORMATS[self.weights].group

    def means(self, name: str) -> bool:
        """Whether a weight of this dotted name is among those that are quantised."""
        return self.weights is not None and any(PARTS[part].fullmatch(name) for part in self.parts)


def parse(given: "Quantization | str | None") -> Quantization | None:
    """What was given, read if it is a text."""
    return Quantization.parse(given) if isinstance(given, str) else given


def _known(word: str, allowed: Iterable[str], what: str) -> str:
    names = list(allowed)
    if word in names:
        return word
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise QuantizationError(f"there is no {what} {word!r}", where="quantize", fix=f"{hint}Allowed: {', '.join(names)}.")


def _write() -> str:
    return f"Write {_SHAPE}."
