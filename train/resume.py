"""What may change in the page of a run that goes on, and what may not.

A run that is resumed shall be the run that was begun: what the saved weights, the optimizer's state or the position in
the data mean is fixed; how fast, how long and how safely it goes on is not. Every key of `train.recipe.Stage` stands in
one of the two tables, or below one that does.
"""

import json
from collections.abc import Mapping
from typing import Any

from vila_jax.errors import ConfigError

MAY_CHANGE = {
    "name": "the run has been renamed",
    "steps": "learning rates follow the schedule of the new length from here on",
    "learning_rate": "the new rate holds from here on",
    "optimizer.weight_decay": "holds from here on",
    "optimizer.warmup": "learning rates follow the new schedule from here on",
    "optimizer.decay": "learning rates follow the new schedule from here on",
    "optimizer.last": "learning rates follow the new schedule from here on",
    "rows.parts": "changes the numbers by rounding alone",
    "data.max_bad_share": "holds for all samples since the beginning",
    "data.threads": "changes nothing that is learned",
    "data.prefetch": "changes nothing that is learned",
    "compute.remat": "changes the numbers by rounding alone",
    "compute.chunk": "changes the numbers by rounding alone",
    "safety": "holds from here on",
    "export": "holds for what is exported at the end",
}
"""Key -> what it means to change it."""

ANOTHER_MODEL = "the saved weights are of another model"
FIXED = {
    "start": ANOTHER_MODEL,
    "parts": ANOTHER_MODEL,
    "new": ANOTHER_MODEL,
    "lora": ANOTHER_MODEL,
    "learning_rate": "the optimizer's state was gathered for these groups alone",
    "optimizer.rule": "the optimizer's state is of this rule",
    "optimizer.b1": "the optimizer's averages were gathered with it",
    "optimizer.b2": "the optimizer's averages were gathered with it",
    "optimizer.clip": "the gradients so far were clipped by it",
    "average": "the average of the weights was gathered with it",
    "rows.rows": "the position in the data counts batches of this size",
    "rows.tokens": "the position in the data lies among rows of this size",
    "rows.pictures": "the position in the data lies among rows of this size",
    "rows.tiles": "the position in the data lies among rows of this size",
    "rows.bins": "the position in the data lies among rows that were filled this way",
    "data.mixture": "the position in the data is one of this mixture",
    "data.seed": "the position in the data is one of this order",
    "budgets": "every budget has its own position in the data",
    "seed": "everything drawn so far was drawn from it",
    "data.style": "the samples would be written in another way",
    "objective": "it would be trained for something else",
    "label_weight": "it would be trained for something else",
    "time_std": "it would be trained for something else",
    "compute.dtype": "the frozen weights are kept in it",
    "compute.scan": "the weights are kept in this form",
}
"""Key -> why it may not change."""


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed in a page since it was saved, a line for each key.

    Args:
      saved, now: resolved pages as JSON objects.

    Raises:
      ConfigError: something has changed that may not; all such keys are named.
    """
    old, new = _leaves(saved), _leaves(now)
    told, refused = [], []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) and (key in old) == (key in new):
            continue
        line = f"{key} was {_shown(old, key)} and is {_shown(new, key)}"
        meaning = _entry(MAY_CHANGE, key)
        group_only = key.startswith("learning_rate.") and not (key in old and key in new)
        if meaning is None or group_only:
            refused.append(f"{line}: {_entry(FIXED, key) or 'nothing is known of what that would mean'}")
        else:
            told.append(f"{line}: {meaning}")
    if refused:
        raise ConfigError(
            "; ".join(refused),
            where="a run that is resumed",
            fix="Go on with the old page, or give the run another name: with `start` it can begin from this one.",
        )
    return told


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; lists are values."""
    if isinstance(value, Mapping) and value:
        return {k: v for name, own in value.items() for k, v in _leaves(own, f"{prefix}.{name}".lstrip(".")).items()}
    return {prefix: json.loads(json.dumps(value))}


def _entry(table: Mapping[str, str], key: str) -> str | None:
    """The entry of a key, or of the nearest key above it."""
    while key not in table and "." in key:
        key = key.rpartition(".")[0]
    return table.get(key)


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return "not there"
    text = json.dumps(leaves[key])
    return text if len(text) <= 60 else f"{text[:60]}…"
