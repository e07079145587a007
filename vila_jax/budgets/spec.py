"""What the user asks for: a method, how much to keep, and the method's options.

    hired:0.2                          a fifth of all patches of the picture's tiles
    hired:20%                          the same
    hired:115                          exactly 115 tokens
    hired:0.2,alpha=0.3,variant=code   options follow, separated by commas
    hired:1                            everything (so does 1.0 and 100%)
    hired:0.4+fastv:0.5,layer=2        steps at different places of the road, in the order of the road

KEEP is a fraction when it holds a `.` or a `%`, or is 1; otherwise it is a number of tokens. A step
keeps so much of what the one before it has left.
"""

import dataclasses
import itertools
import math
import re
import typing
from collections.abc import Callable, Iterable
from decimal import Decimal

import numpy as np

from vila_jax.budgets import registry
from vila_jax.budgets.decoder_method import DecoderMethod
from vila_jax.budgets.method import Method, Stage, TokenMethod, TowerMethod
from vila_jax.budgets.tower import Survivors
from vila_jax.errors import BudgetError

OptionValue = bool | int | float | str

_SHAPE = "NAME:KEEP[,OPTION=VALUE…], for example hired:0.2 or hired:115,alpha=0.3"
_STAGES = typing.get_args(Stage)
_PLACES: dict[Stage, str] = {
    "picture": "before the vision tower",
    "tower": "inside the vision tower",
    "tokens": "between the vision tower and the decoder",
    "decoder": "inside the decoder",
}
_MERGED = "makes tokens of several patches, which have no position of their own"
_NUMBER = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)%?")
_COMBINE = re.compile(r"\+(?=[A-Za-z])")  # so that a method's name may end in a plus


@dataclasses.dataclass(frozen=True)
class Step:
    """One method with how much it keeps: hashable, hence a static argument of `jax.jit`.

    Attributes:
      method: name of a method of the registry; an alias becomes the name that it stands for.
      keep: a fraction in (0, 1] as a float, or a number of tokens >= 2 as an int.
      options: the options that were given, as (name, value); values may be passed as text.

    Raises:
      BudgetError: unknown method or option, a value of the wrong type or out of range.
    """

    method: str
    keep: float | int
    options: tuple[tuple[str, OptionValue], ...] = ()

    def __post_init__(self):
        method = registry.get(self.method)
        object.__setattr__(self, "method", method.name)
        object.__setattr__(self, "keep", _check_keep(self.keep))
        object.__setattr__(self, "options", _read_options(method, self.options))
        _ = self.rule  # the method checks the values of its options when it is built

    @classmethod
    def parse(cls, text: str) -> "Step":
        """Reads a spec of one method, such as `hired:0.2,alpha=0.3`; `str(step)` writes it.

        Raises:
          BudgetError: the text is malformed, or any of the reasons for which a `Step` is refused.
        """
        name, colon, rest = (piece.strip() for piece in text.partition(":"))
        keep, *pairs = (piece.strip() for piece in rest.split(","))
        if not name or not colon or not keep:
            raise BudgetError("malformed budget", where=f"budget {text!r}", fix=f"Write {_SHAPE}.")
        registry.get(name)  # a wrong name is said before a wrong number
        return cls(name, _read_keep(keep), tuple(_split_pair(pair, text) for pair in pairs))

    def __str__(self) -> str:
        # Positional: "1e-05" would hold no point, and so be no fraction.
        keep = str(self.keep) if isinstance(self.keep, int) else np.format_float_positional(self.keep, trim="0")
        return f"{self.method}:{keep}" + "".join(f",{name}={_as_text(value)}" for name, value in self.options)

    @property
    def rule(self) -> Method:
        """The method with its options."""
        return registry.get(self.method)(**dict(self.options))

    @property
    def token_method(self) -> TokenMethod:
        """`rule`, of a step of the stage `tokens`; of one inside the tower, what keeps everything that it leaves."""
        rule = self.rule
        if isinstance(rule, TowerMethod):
            return Survivors(rule.positions)
        if not isinstance(rule, TokenMethod):
            raise TypeError(f"{self} works at the stage {rule.stage!r}, not on the tokens of a picture")
        return rule

    @property
    def tower_method(self) -> TowerMethod:
        """`rule`, of a step of the stage `tower`."""
        rule = self.rule
        if not isinstance(rule, TowerMethod):
            raise TypeError(f"{self} works at the stage {rule.stage!r}, not inside the tower")
        return rule

    @property
    def decoder_method(self) -> DecoderMethod:
        """`rule`, of a step of the stage `decoder`."""
        rule = self.rule
        if not isinstance(rule, DecoderMethod):
            raise TypeError(f"{self} works at the stage {rule.stage!r}, not inside the decoder")
        return rule

    @property
    def is_full(self) -> bool:
        """Whether this is no budget at all: the model runs as it would without one, newline tokens included."""
        return self.keep == 1.0 and self.rule.full_is_unbudgeted


@dataclasses.dataclass(frozen=True)
class Budget:
    """A visual-token budget: at most one step for every stage of the road, in the order of the road.

    Hashable, hence a static argument of `jax.jit`; programs are given the step that they run, so that budgets which
    differ elsewhere share them.

    Raises:
      BudgetError: no step, two of one stage, steps against the order of the road, or a step that cannot do with what an
        earlier one has left.
    """

    steps: tuple[Step, ...]

    def __post_init__(self):
        if not self.steps:
            raise BudgetError("a budget without a method", fix=f"Write {_SHAPE}.")
        for one, other in itertools.pairwise(self.steps):
            first, second = one.rule.stage, other.rule.stage
            if first == second:
                raise BudgetError(
                    f"{one.method} and {other.method} both work {_PLACES[first]}",
                    where=f"budget {str(self)!r}",
                    fix="Give one of them.",
                )
            if _STAGES.index(first) > _STAGES.index(second):
                raise BudgetError(
                    f"{one.method} works {_PLACES[first]}, after {other.method}",
                    where=f"budget {str(self)!r}",
                    fix=f"Write {other}+{one}.",
                )
        self._check_tower()
        self._check_positions()

    def _check_tower(self) -> None:
        picture, tower, tokens = self.step("picture"), self.step("tower"), self.step("tokens")
        if picture is not None and tower is not None:
            raise BudgetError(
                f"{tower.method} counts the tokens of whole tiles, and {picture.method} may make tiles smaller",
                where=f"budget {str(self)!r}",
                fix="Give one of them.",
            )
        if tower is not None and tokens is not None and not tokens.token_method.after_tower:
            able = [name for name, method in registry.METHODS.items() if getattr(method, "after_tower", False)]
            raise BudgetError(
                f"{tokens.method} scores or counts patches of which {tower.method} leaves only some",
                where=f"budget {str(self)!r}",
                fix=f"Give one of them. What {tower.method} leaves can be chosen from by: {', '.join(able)}.",
            )

    def _check_positions(self) -> None:
        tower, tokens = self.step("tower"), self.step("tokens")
        if tower is None or tokens is None:
            return
        reading, asked = tokens.token_method.positions == "original", tower.tower_method.positions == "original"
        if reading and tower.tower_method.merges:
            raise BudgetError(
                f"{tokens.method} is asked for original positions, and {tower.method} {_MERGED}",
                where=f"budget {str(self)!r}",
                fix="Leave positions=original out.",
            )
        if asked and not reading:
            raise BudgetError(
                f"{tower.method} is asked for original positions, and {tokens.method} counts the tokens anew",
                where=f"budget {str(self)!r}",
                fix=f"Give positions=original to {tokens.method}.",
            )

    @classmethod
    def of(cls, method: str, keep: float | int, options: tuple[tuple[str, OptionValue], ...] = ()) -> "Budget":
        """A budget of one step."""
        return cls((Step(method, keep, options),))

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads a spec such as `hired:0.4+fastv:0.5,layer=2`; `str(budget)` writes it.

        Raises:
          BudgetError: the text is malformed, or any of the reasons for which a `Step` or a `Budget` is refused.
        """
        return cls(tuple(Step.parse(part) for part in _COMBINE.split(text.strip())))

    def __str__(self) -> str:
        return "+".join(str(step) for step in self.steps)

    def step(self, stage: Stage) -> Step | None:
        """The step of a stage; None where there is none or where it keeps everything."""
        return next((step for step in self.steps if step.rule.stage == stage and not step.is_full), None)

    @property
    def is_full(self) -> bool:
        """Whether this is no budget at all."""
        return all(step.is_full for step in self.steps)


def _split_pair(pair: str, text: str) -> tuple[str, str]:
    name, equals, value = (piece.strip() for piece in pair.partition("="))
    if not name or not equals or not value:
        raise BudgetError(f"malformed option {pair!r}", where=f"budget {text!r}", fix=f"Write {_SHAPE}.")
    return name, value


def _read_keep(text: str) -> float | int:
    if not _NUMBER.fullmatch(text):
        raise BudgetError(
            f"KEEP is {text!r}, which is not a number",
            fix="Give a fraction such as 0.2 or 20%, or a number of tokens such as 115.",
        )
    if text.endswith("%"):
        return float(Decimal(text[:-1]) / 100)  # decimal, so that 33.3% is the double nearest to 0.333
    return float(text) if "." in text else int(text)


def _check_keep(keep: float | int) -> float | int:
    """The same number, with 1 as a fraction."""
    if keep == 1 and not isinstance(keep, bool):
        return 1.0
    if isinstance(keep, bool) or not keep > 0:  # NaN is not either
        raise BudgetError(
            f"KEEP is {keep}; a budget keeps at least something",
            fix="Give a fraction in (0, 1], or a number of tokens such as 115.",
        )
    if isinstance(keep, float) and keep > 1:
        raise BudgetError(
            f"KEEP is the fraction {keep}, which is above 1",
            fix="Give a fraction in (0, 1], or a number of tokens without a decimal point.",
        )
    return keep


def _read_options(
    method: type[Method], given: Iterable[tuple[str, OptionValue]]
) -> tuple[tuple[str, OptionValue], ...]:
    """The options given, converted to the types of the method's fields and in the order of these."""
    kinds = typing.get_type_hints(method)
    names = [field.name for field in dataclasses.fields(method)]  # type: ignore[arg-type]
    values: dict[str, OptionValue] = {}
    for name, value in given:
        if name == "positions" and issubclass(method, TowerMethod | TokenMethod) and method.merges:
            fix = "Leave it out, or use a method that keeps patches as they are, such as hired."
            raise BudgetError(f"{method.name} {_MERGED}", where=f"option {name}", fix=fix)
        if name not in names:
            fix = f"{registry.suggest(name, names)}."
            raise BudgetError(f"unknown option {name!r} of budget method {method.name!r}", fix=fix)
        if name in values:
            raise BudgetError(f"option {name!r} of budget method {method.name!r} is given twice", fix="Give it once.")
        values[name] = _read_value(_as_text(value), kinds[name], f"option {name} of budget method {method.name!r}")
    return tuple((name, values[name]) for name in names if name in values)


def _read_value(text: str, kind: object, where: str) -> OptionValue:
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if choices:
        if text in choices:
            return text
        raise BudgetError(f"{text!r} is none of its values", where=where, fix=f"{registry.suggest(text, choices)}.")
    expected, read = _READERS[kind]
    try:
        return read(text)
    except ValueError:
        raise BudgetError(f"expected {expected}, got {text!r}", where=where) from None


def _read_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _read_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


_READERS: dict[object, tuple[str, Callable[[str], OptionValue]]] = {
    bool: ("true or false", _read_bool),
    int: ("a whole number", int),
    float: ("a finite number", _read_float),
}


def _as_text(value: OptionValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
