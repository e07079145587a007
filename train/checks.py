"""What a stage must not say, whatever its types allow."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from train.data.mixture import parse_mixture
from train.recipe import Stage
from train.typed import nearest
from train.weights import GROUPS
from vila_jax.budgets import Budget
from vila_jax.errors import ConfigError
from vila_jax.nn.projector_types import projector_config
from vila_jax.text.styles import get_style
from vila_jax.text.vila_styles import get_vila_style

FULL = "full"
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*")


class _Allowed(NamedTuple):
    """Numbers that a key may have, and what to say about others."""

    test: Callable[[Any], bool]
    words: str


_COUNT = _Allowed(lambda x: x >= 1, "1 or more")
_NOT_NEGATIVE = _Allowed(lambda x: 0 <= x < math.inf, "0 or more")
_POSITIVE = _Allowed(lambda x: 0 < x < math.inf, "more than 0")
_SHARE = _Allowed(lambda x: 0 <= x <= 1, "from 0 to 1")
_BELOW_ONE = _Allowed(lambda x: 0 <= x < 1, "0 or more, and less than 1")
_ALLOWED = {
    "steps": _COUNT,
    "seed": _NOT_NEGATIVE,
    "label_weight": _NOT_NEGATIVE,
    "time_std": _POSITIVE,
    "average": _BELOW_ONE,
    "rows.rows": _COUNT,
    "rows.tokens": _Allowed(lambda x: x >= 2, "2 or more"),
    "rows.tiles": _NOT_NEGATIVE,
    "rows.parts": _COUNT,
    "rows.bins": _COUNT,
    "data.seed": _NOT_NEGATIVE,
    "data.max_bad_share": _SHARE,
    "data.threads": _COUNT,
    "data.prefetch": _NOT_NEGATIVE,
    "lora.rank": _COUNT,
    "lora.alpha": _POSITIVE,
    "optimizer.b1": _BELOW_ONE,
    "optimizer.b2": _BELOW_ONE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.clip": _POSITIVE,
    "optimizer.warmup": _SHARE,
    "optimizer.last": _SHARE,
    "compute.chunk": _COUNT,
    "safety.spike": _Allowed(lambda x: 1 < x < math.inf, "more than 1"),
    "safety.max_skipped": _COUNT,
    "safety.save_every": _COUNT,
    "safety.keep_last": _COUNT,
    "safety.keep_every": _COUNT,
}


def check(stage: Stage) -> None:
    """Refuses a stage that cannot be run.

    Raises:
      ConfigError, BudgetError: with the key that is wrong.
    """
    if not _NAME.fullmatch(stage.name):
        raise ConfigError(
            f"got {stage.name!r}", where="name", fix="Use names of folders joined by /, as vila_7b/align."
        )
    _check_rates(stage)
    for key, allowed in _ALLOWED.items():
        value = _value(stage, key)
        if value is not None and not allowed.test(value):
            raise ConfigError(f"got {value}", where=key, fix=f"It has to be {allowed.words}.")
    if stage.rows.rows % stage.rows.parts:
        raise ConfigError(
            f"{stage.rows.rows} rows cannot be looked at in {stage.rows.parts} equal parts",
            where="rows.parts",
            fix="Use a divisor of rows.rows.",
        )
    _check_origin(stage)
    parse_mixture(stage.data.mixture)
    if stage.data.style is not None:
        get_vila_style(stage.data.style, where="data.style")
    _check_budgets(stage)
    _check_lora(stage)


def _value(stage: Stage, key: str) -> Any:
    """What stands under a dotted name; None where a section is absent."""
    value: Any = stage
    for name in key.split("."):
        value = None if value is None else getattr(value, name)
    return value


def _check_rates(stage: Stage) -> None:
    if not stage.learning_rate:
        raise ConfigError("nothing is trained", where="learning_rate", fix=f"Give one of {', '.join(GROUPS)} a rate.")
    for group, rate in stage.learning_rate.items():
        if group not in GROUPS:
            near = nearest(group, GROUPS)
            fix = f"Did you mean {near!r}?" if near else f"There are {', '.join(GROUPS)}."
            raise ConfigError(f"unknown group {group!r}", where="learning_rate", fix=fix)
        if not 0 < rate < math.inf:
            fix = "It has to be more than 0; a group without a rate is not trained."
            raise ConfigError(f"got {rate}", where=f"learning_rate.{group}", fix=fix)


def _check_origin(stage: Stage) -> None:
    given = [name for name in ("start", "parts", "new") if getattr(stage, name) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"the weights come from {' and '.join(given) if given else 'nowhere'}",
            where="start, parts, new",
            fix="Give exactly one of the three; on the command line `--parts none` takes one away.",
        )
    if stage.parts is not None:
        projector_config(stage.parts.projector, 1, 1)
        if stage.parts.style is not None and stage.parts.layout == "llava":
            get_style(stage.parts.style)
        elif stage.parts.style is not None:
            get_vila_style(stage.parts.style, where="parts.style")


def _check_budgets(stage: Stage) -> None:
    if not stage.budgets:
        raise ConfigError("is empty", where="budgets", fix=f"Write {FULL!r} for all visual tokens.")
    for text in stage.budgets:
        if text != FULL:
            Budget.parse(text)
        if stage.budgets.count(text) > 1:
            raise ConfigError(f"{text!r} stands twice", where="budgets", fix="Name every budget once.")


def _check_lora(stage: Stage) -> None:
    for group in stage.lora.groups if stage.lora else ():
        if group not in ("tower", "decoder"):
            raise ConfigError(f"{group!r} takes no additions", where="lora.groups", fix="Use tower or decoder.")
        if group not in stage.learning_rate:
            raise ConfigError(
                f"the additions to the {group} have no learning rate",
                where="lora.groups",
                fix=f"Give --learning-rate.{group} a rate.",
            )
