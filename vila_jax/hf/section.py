"""Typed reading of a JSON object, with errors that name the key, the value and what is supported.

A checkpoint's `config.json` is written by others: every value is checked for its type before use, and a value that this
library cannot honour is an error rather than a silent default.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from vila_jax.errors import ConfigError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Section:
    """A JSON object and the dotted name under which messages mention it, `config.json: text_config` for example."""

    values: Mapping[str, Any]
    name: str

    def where(self, key: str) -> str:
        return f"{self.name}.{key}" if ": " in self.name else f"{self.name}: {key}"

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def error(self, key: str, wanted: str, fix: str | None = None) -> ConfigError:
        """The error for a value that is not `wanted`."""
        found = repr(self.values[key]) if key in self.values else "nothing"
        return ConfigError(f"expected {wanted}, got {found}", where=self.where(key), fix=fix)

    def section(self, key: str) -> "Section":
        """The object under `key`; absent and null count as empty."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.error(key, "an object")
        return Section(value, self.where(key))

    def integer(self, key: str, default: int, minimum: int = 1) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(key, f"an integer of at least {minimum}")
        return value

    def optional_integer(self, key: str, default: int | None, minimum: int = 1) -> int | None:
        """Like `integer`, but null is a value of its own."""
        return None if self.values.get(key, default) is None else self.integer(key, default or minimum, minimum)

    def number(self, key: str, default: float) -> float:
        """A positive number; null counts as absent."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise self.error(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """A string; null and an empty one count as absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "a string")
        return value or None

    def choice(self, key: str, default: str, table: Mapping[str, T]) -> T:
        """Looks the value up in `table`, whose keys are what this library supports."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in table:
            raise ConfigError(f"{value!r} is not supported", where=self.where(key), fix=supported(table))
        return table[value]

    def fixed(self, key: str, *neutral: Any) -> None:
        """Refuses a value that would change the computation; absent, null and the `neutral` values do not."""
        value = self.values.get(key)
        if value is not None and value not in neutral:
            raise ConfigError(
                f"{value!r} is not supported", where=self.where(key), fix=supported([repr(n) for n in neutral])
            )


def supported(names: Any) -> str:
    """The closing sentence of a message about an unknown value."""
    names = list(names)
    return f"Supported: {', '.join(names)}." if names else "Only checkpoints without it are supported."
