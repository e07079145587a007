"""Every key of a stage is known to be free or fixed when a run is resumed."""

import dataclasses
import typing

import pytest

from train import recipe
from train.resume import FIXED, MAY_CHANGE, changes
from vila_jax.errors import ConfigError

PAGE = {
    "steps": 100,
    "learning_rate": {"projector": 1e-3},
    "rows": {"rows": 32, "parts": 1},
    "data": {"threads": 8, "mixture": "a"},
    "safety": {"save_every": 500, "keep_every": None},
    "optimizer": {"rule": "adamw"},
    "start": "vila/align",
    "new": None,
    "budgets": ["full"],
}


def keys(cls=recipe.Stage, prefix=""):
    """All dotted keys of a dataclass; what may be None is a key of its own."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from keys(kind, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def covered(table, key):
    return key in table or key.split(".")[0] in table


def test_every_key_is_in_one_of_the_tables():
    for key in keys():
        free, fixed = covered(MAY_CHANGE, key), covered(FIXED, key)
        assert free != fixed or key == "learning_rate", key  # its values are free, its groups fixed
    known = set(keys()) | {key.split(".")[0] for key in keys()}
    assert set(MAY_CHANGE) | set(FIXED) <= known


def test_what_may_change():
    assert changes(PAGE, PAGE) == []
    now = PAGE | {
        "steps": 200,
        "learning_rate": {"projector": 1e-4},
        "rows": {"rows": 32, "parts": 2},
        "data": {"threads": 2, "mixture": "a"},
        "safety": {"save_every": 100, "keep_every": 1000},
        "budgets": ("full",),
    }
    told = changes(PAGE, now)
    assert [line.split()[0] for line in told] == [
        "data.threads", "learning_rate.projector", "rows.parts", "safety.keep_every", "safety.save_every", "steps",
    ]  # fmt: skip
    assert told[0] == "data.threads was 8 and is 2: changes nothing that is learned"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rows": {"rows": 64, "parts": 1}}, "rows.rows was 32 and is 64: the position in the data counts"),
        ({"optimizer": {"rule": "muon"}}, 'was "adamw" and is "muon": the optimizer\'s state is of this rule'),
        ({"learning_rate": {"projector": 1e-3, "decoder": 1e-5}}, "learning_rate.decoder was not there"),
        ({"learning_rate": {}}, "learning_rate.projector was 0.001 and is not there"),
        ({"start": "other"}, "another model"),
        ({"start": None, "new": {"config": {"a": 1}}}, "new.config.a was not there and is 1: the saved weights"),
        ({"data": {"threads": 8, "mixture": "b"}}, "is one of this mixture"),
        ({"budgets": ["full", "hired:0.2"]}, "own position"),
        ({"unheard": 1}, "nothing is known"),
    ],
)
def test_what_may_not(change, why):
    with pytest.raises(ConfigError) as caught:
        changes(PAGE, PAGE | change)
    assert why in str(caught.value) and "another name" in str(caught.value)
