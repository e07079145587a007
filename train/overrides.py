"""Keys of a stage, and words of a command line that change them.

    --rows.rows 32 --learning-rate.projector 1e-4 --optimizer.rule=muon --budgets full hired:0.2 --parts none

A key is a dotted name, in which `-` and `_` are one. Its value has the type of the field: `none` stands where a field
may be None, several words are a list. A group is given a learning rate by `--learning-rate.GROUP RATE`, and is left
alone after `none`. Keys of a section that a stage does not have make one: `--lora.rank 64`.
"""

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from train.recipe import Stage
from train.typed import built, described, dotted, hints_of, inner, is_optional, nearest, plain, wrong_value
from vila_jax.errors import ConfigError

_NONE = "none"


def override(stage: Stage, words: Sequence[str]) -> Stage:
    """The stage with the changes that the words say.

    Raises:
      ConfigError: an unknown key, or a value that it cannot have.
    """
    values = plain(stage)
    for word, given in _pairs(words):
        _put(values, word, given)
    return built(Stage, values)


def _pairs(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Words that name keys, each with the words behind it."""
    pairs: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word.partition("=")
            pairs.append((key, [value] if equals else []))
        elif pairs:
            pairs[-1][1].append(word)
        else:
            raise ConfigError(f"got {word!r}", where="command line", fix="Write --KEY VALUE.")
    return pairs


def _put(values: dict[str, Any], word: str, words: list[str]) -> None:
    """Sets the key that a word names in the plain values of a stage."""
    key = word.removeprefix("--").replace("-", "_")
    place, hint, given = values, Stage, key.split(".")
    for i, name in enumerate(given):
        hint = _hint(hint, name, place)
        if hint is None:
            raise _unknown(word, key, values)
        if i < len(given) - 1:
            if place.get(name) is None:
                place[name] = {}
            place = place[name]
    if len(given) > 1 and given[-2] == "learning_rate" and _is_none(words):
        place.pop(given[-1], None)
    else:
        place[given[-1]] = _read(hint, words, key)


def _hint(hint: Any, name: str, place: Any) -> Any:
    """Type of what has this name in a section, or in a dict; None if nothing can have it."""
    hint = inner(hint)
    if typing.get_origin(hint) is dict:
        free = typing.get_args(hint)[1]
        return free if free is float or name in place else None
    if hint is Any:
        return Any if isinstance(place, dict) and name in place else None
    return hints_of(hint).get(name) if dataclasses.is_dataclass(hint) else None


def _unknown(word: str, key: str, values: dict[str, Any]) -> ConfigError:
    near = nearest(key, [known.name for known in keys()] + list(_leaves(values)))
    meant = f"Did you mean --{near.replace('_', '-')}? " if near else ""
    return ConfigError(f"unknown key {word}", fix=f"{meant}--help lists all keys.")


def _read(hint: Any, words: list[str], key: str) -> Any:
    """The plain value that is written so."""
    if is_optional(hint) and _is_none(words):
        return None
    kind = inner(hint)
    if typing.get_origin(kind) is tuple:
        return words
    if len(words) != 1:
        raise wrong_value(hint, " ".join(words) or "nothing", key)
    word = words[0]
    try:
        if kind in (int, float):
            return kind(word)
        if kind is bool:
            return {"true": True, "false": False}[word.lower()]
        if kind is Any:
            return _json_or_text(word)
    except (ValueError, KeyError):
        raise wrong_value(hint, word, key) from None
    if kind is str or typing.get_origin(kind) is Literal:
        return word
    raise wrong_value(hint, word, key)


def _json_or_text(word: str) -> Any:
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def _is_none(words: list[str]) -> bool:
    return [word.lower() for word in words] == [_NONE]


def _leaves(values: Any, key: str = "") -> Iterator[str]:
    """Dotted names of all values."""
    for name, own in values.items():
        if isinstance(own, dict):
            yield from _leaves(own, dotted(key, name))
        else:
            yield dotted(key, name)


class Key(NamedTuple):
    """A key of a stage: its dotted name, its type in words, and what it means."""

    name: str
    type: str
    doc: str


def keys(cls: Any = Stage, key: str = "") -> list[Key]:
    """All keys, in the order of the fields."""
    found, docs = [], _docs(cls)
    for name, hint in hints_of(cls).items():
        kind = inner(hint)
        if dataclasses.is_dataclass(kind):
            found += keys(kind, dotted(key, name))
        elif kind == dict[str, float]:
            found.append(Key(f"{dotted(key, name)}.GROUP", described(float), docs[name]))
        elif typing.get_origin(kind) is not dict:
            found.append(Key(dotted(key, name), described(hint), docs[name]))
    return found


def _docs(cls: type) -> dict[str, str]:
    """What the docstring of a dataclass says of its attributes."""
    text = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^  (\w[\w, ]*): (.*(?:\n {4,}.*)*)", text, re.MULTILINE)
    return {name.strip(): " ".join(doc.split()) for names, doc in entries for name in names.split(",")}
