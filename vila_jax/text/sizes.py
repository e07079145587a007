"""How large the result of an operation in a template can become, known before it is computed.

A size counts characters of text and items of containers. Only operations that can amplify are listed: the result of
any other is no larger than what goes in.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MAX_INT_BITS = 4096
_TOO_LARGE = 1 << 62
_CONTAINERS = (list, tuple, dict, set, frozenset)


def flat_size(value: Any) -> int:
    """Characters of a text, items of a container, about the digits of an int, and 1 of anything else."""
    if isinstance(value, str | bytes | list | tuple | dict | set | frozenset):
        return len(value)
    return value.bit_length() // 3 + 1 if isinstance(value, int) else 1


def tree_size(value: Any, limit: int, indent: int = 0) -> int:
    """Size of a nested value as it would print, shared parts counted as often as they occur.

    Args:
      value: containers of containers.
      limit: counting stops above it, so that a graph that prints as a huge tree takes no longer than this.
      indent: characters that each item is indented by, per level.
    """
    size, pending = 0, [(value, 0)]
    while pending and size <= limit:
        item, depth = pending.pop()
        size += 1 + indent * depth + (0 if isinstance(item, _CONTAINERS) else flat_size(item))
        if isinstance(item, _CONTAINERS) and size + len(item) <= limit:
            parts = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            pending.extend((part, depth + 1) for part in parts)
        elif isinstance(item, _CONTAINERS):
            size += len(item)
    return size


def _ints(arguments: Sequence[Any]) -> int:
    return sum(abs(argument) for argument in arguments if isinstance(argument, int))


def _format_bound(pattern: Any, arguments: Sequence[Any]) -> int:
    """Bound of `pattern % arguments` and `pattern.format(*arguments)`."""
    if not isinstance(pattern, str | bytes):
        return 1
    text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    fields = text.count("%") + text.count("{")
    widths = [int(digits[:18]) for digits in re.findall(r"\d{4,}", text)]
    if "*" in text or re.search(r"\{[^{}]*\{", text):  # a width may be an argument
        widths.append(_ints(arguments))
    return len(text) + fields * (max(widths, default=1000) + tree_size(list(arguments), _TOO_LARGE))


def _replace_bound(text: Any, arguments: Sequence[Any]) -> int:
    if not (isinstance(text, str | bytes) and len(arguments) >= 2 and isinstance(arguments[0], type(text))):
        return 1
    return len(text) + text.count(arguments[0]) * flat_size(arguments[1])  # type: ignore[arg-type]


def _join_bound(separator: Any, items: Any) -> int:
    if not isinstance(items, _CONTAINERS):
        return 1
    return sum(tree_size(item, _TOO_LARGE) for item in items) + len(items) * flat_size(separator)


def _padding_bound(value: Any, arguments: Sequence[Any]) -> int:
    return flat_size(value) + _ints(arguments)


def _scaling_bound(value: Any, arguments: Sequence[Any]) -> int:
    return flat_size(value) * (1 + _ints(arguments) + sum(tree_size(argument, _TOO_LARGE) for argument in arguments))


def _json_bound(value: Any, arguments: Sequence[Any], indent: Any = 0) -> int:
    width = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    separators = sum(flat_size(part) for argument in arguments if isinstance(argument, tuple) for part in argument)
    return tree_size(value, _TOO_LARGE, abs(width)) * (1 + separators)


# Methods of str, bytes and int, each with the bound of (owner, arguments).
_METHODS: Mapping[str, Callable[[Any, Sequence[Any]], int]] = {
    "center": _padding_bound,
    "ljust": _padding_bound,
    "rjust": _padding_bound,
    "zfill": _padding_bound,
    "to_bytes": _padding_bound,
    "expandtabs": _scaling_bound,
    "translate": _scaling_bound,
    "format": _format_bound,
    "format_map": _format_bound,
    "replace": _replace_bound,
    "join": lambda separator, arguments: _join_bound(separator, arguments[0]) if arguments else 1,
}

# Filters, each with the bound of (value, arguments).
_FILTERS: Mapping[str, Callable[[Any, Sequence[Any]], int]] = {
    "batch": _padding_bound,
    "slice": _padding_bound,
    "center": _padding_bound,
    "round": _padding_bound,
    "indent": _scaling_bound,
    "format": _format_bound,
    "replace": _replace_bound,
    "join": lambda items, arguments: _join_bound(arguments[0] if arguments else "", items),
}


def binop_bound(operator: str, left: Any, right: Any) -> int:
    """Bound of `left operator right`."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if operator == "**":
            bits = left.bit_length() * abs(right)
        return 1 if bits <= _MAX_INT_BITS else _TOO_LARGE
    if operator == "*":
        count, value = (left, right) if isinstance(left, int) else (right, left)
        return flat_size(value) * max(count, 0) if isinstance(count, int) else 1
    if operator == "%":
        return _format_bound(left, right if isinstance(right, tuple) else [right])
    return flat_size(left) + flat_size(right) if operator == "+" else 1


def call_bound(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Bound of a call; only methods of Python's own types can amplify."""
    # Jinja wraps `str.format`, and keeps the method itself under `__wrapped__`.
    method = getattr(function, "__wrapped__", function)
    bound = _METHODS.get(getattr(method, "__name__", ""))
    owner = getattr(method, "__self__", None)
    return bound(owner, [*args, *kwargs.values()]) if bound and isinstance(owner, str | bytes | int) else 1


def filter_bound(name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Bound of `value | name(args)`."""
    arguments = [*args, *kwargs.values()]
    if name == "tojson":
        return _json_bound(value, arguments, kwargs.get("indent", args[1] if len(args) > 1 else 0))
    if name == "sum" and any(isinstance(argument, _CONTAINERS) for argument in arguments):
        return flat_size(value) ** 2  # adding up lists copies the sum at every step
    return _FILTERS[name](value, arguments) if name in _FILTERS else 1
