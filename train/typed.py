"""Dataclasses from plain values, as they stand in JSON, and back.

What is unknown or of a wrong type is refused, naming the key and what is nearest to it.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection
from typing import Any, Literal, Union

from vila_jax.errors import ConfigError


def plain(value: Any) -> Any:
    """A dataclass as nested dicts, tuples as lists; all else as it is."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(own) for key, own in value.items()}
    return [plain(own) for own in value] if isinstance(value, list | tuple) else value


def built(hint: Any, value: Any, key: str = "") -> Any:
    """The value of this type that `plain` has taken apart.

    Args:
      hint: a dataclass, or what its fields are annotated with: `int`, `float`, `bool`, `str`, `Any`, `Literal`, a tuple
        of any length, a dict with text as its keys, or one of these or None.
      value: the plain value.
      key: dotted name of the value, for errors.

    Raises:
      ConfigError: an unknown or a missing key, or a value of another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, key)
    if is_optional(hint):
        return None if value is None else built(inner(hint), value, key)
    if origin is tuple and isinstance(value, list):
        return tuple(built(args[0], own, f"{key}[{i}]") for i, own in enumerate(value))
    if origin is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: built(args[1], own, dotted(key, name)) for name, own in value.items()}
    is_choice = origin is Literal and value in args
    if is_choice or (hint is Any and _is_json(value)) or type(value) is hint:
        return value
    if hint is float and type(value) is int:
        return float(value)
    raise wrong_value(hint, value, key)


def _dataclass(cls: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise wrong_value(cls, value, key)
    hints = hints_of(cls)
    for name in value:
        if name not in hints:
            near = nearest(name, hints)
            fix = f"Did you mean {dotted(key, near)!r}?" if near else f"There are {', '.join(hints)}."
            raise ConfigError(f"unknown key {dotted(key, name)!r}", fix=fix)
    for field in dataclasses.fields(cls):
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_required and field.name not in value:
            raise ConfigError("is missing", where=dotted(key, field.name), fix=f"It is {described(hints[field.name])}.")
    return cls(**{name: built(hints[name], own, dotted(key, name)) for name, own in value.items()})


def hints_of(cls: Any) -> dict[str, Any]:
    """The type of every field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def is_optional(hint: Any) -> bool:
    """Whether None is allowed."""
    return typing.get_origin(hint) in (Union, types.UnionType) and type(None) in typing.get_args(hint)


def inner(hint: Any) -> Any:
    """A type without its None."""
    return next(arg for arg in typing.get_args(hint) if arg is not type(None)) if is_optional(hint) else hint


def described(hint: Any) -> str:
    """A type in words."""
    hint, end = inner(hint), " or none" if is_optional(hint) else ""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, args)) + end
    if origin is tuple:
        return f"a list of {described(args[0])}" + end
    if origin is dict:
        return f"{described(args[1])} by name" + end
    words = {int: "a whole number", float: "a number", bool: "true | false", str: "text", Any: "JSON"}
    return words.get(hint, "a section") + end


def wrong_value(hint: Any, value: Any, key: str) -> ConfigError:
    """What to say about a value of another type."""
    choices = typing.get_args(inner(hint)) if typing.get_origin(inner(hint)) is Literal else ()
    near = nearest(str(value), choices)
    fix = f"Did you mean {near!r}? There are {', '.join(choices)}." if near else f"It has to be {described(hint)}."
    if dataclasses.is_dataclass(inner(hint)):
        fix = f"It has keys of its own: {', '.join(hints_of(inner(hint)))}."
    return ConfigError(f"got {value!r}", where=key or None, fix=fix)


def dotted(key: str, name: str) -> str:
    """Dotted name of a part of what has the dotted name `key`."""
    return f"{key}.{name}" if key else name


def nearest(word: str, names: Collection[str]) -> str | None:
    """The name that was probably meant: one with the same last part, or else one that is written alike."""
    last = word.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    near = difflib.get_close_matches(word, same or names, n=1, cutoff=0.0 if same else 0.6)
    return near[0] if near else None


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(own) for key, own in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or type(value) in (bool, int, float, str)
