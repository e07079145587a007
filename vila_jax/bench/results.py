"""What benches have measured, as plain data: rows, and what they have in common."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
from typing import Any

import jax

import vila_jax
from vila_jax.bench.machine import Rates, cpu_name
from vila_jax.bench.timing import Times
from vila_jax.errors import VilaError

_FORMAT = "vila-jax bench"
_NAMED = ("model", "side", "dtype", "quantize", "batch", "rows", "budget")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      bench: what was measured: `prefill`, `decode`, ...
      case: of what: model, dtype, batch, budget and so on; rows of two results with equal cases are comparable.
      times: seconds of repeats, by what was timed.
      facts: what was counted, and what follows from both, by name (see `vila_jax.bench.tables`).
      refused: why there are none.
    """

    bench: str
    case: dict[str, Any]
    times: dict[str, Times] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    refused: str | None = None

    @property
    def named(self) -> list[tuple[str, Any]]:
        """What of the case tells rows of one command apart."""
        known = {"budget": "full"} | {name: value for name, value in self.case.items() if value is not None}
        return [(name, known[name]) for name in _NAMED if name in self.case]

    @property
    def title(self) -> str:
        """The row in a few words."""
        return ", ".join((self.bench, *(f"{name} {value}" for name, value in self.named)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Row":
        times = {name: Times(**value) for name, value in data["times"].items()}
        return cls(data["bench"], data["case"], times, data["facts"], data["refused"])


@dataclasses.dataclass(frozen=True)
class Results:
    """Rows, and on what they were measured.

    Attributes:
      settings: command, date, machine, versions, and the rates that floors are computed from.
    """

    settings: dict[str, Any]
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """Plain data: seconds, FLOPs, bytes, and fractions of 1."""
        return {"format": _FORMAT, "settings": self.settings, "rows": [dataclasses.asdict(row) for row in self.rows]}

    def write(self, path: pathlib.Path) -> None:
        """Writes a JSON file."""
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


def read_results(path: pathlib.Path) -> Results:
    """Reads what `Results.write` has written.

    Raises:
      VilaError: there is no such file, or it is something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise KeyError(_FORMAT)
        return Results(data["settings"], [Row.from_json(row) for row in data["rows"]])
    except OSError as error:
        raise VilaError(f"it cannot be read: {error.strerror or error}", where=str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        fix = "Give a file that `vila-jax bench ... --json FILE` has written."
        raise VilaError("this is no result of a bench", where=str(path), fix=fix) from error


def environment() -> dict[str, Any]:
    """The machine, its devices, and versions."""
    device = jax.devices()[0]
    return {
        "device": f"{device.device_kind} ({device.platform})",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": {"vila_jax": vila_jax.__version__}
        | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def settings(command: str, rates: Rates | None = None, **others: Any) -> dict[str, Any]:
    """Of a `Results` that is being made.

    Args:
      command: that makes it again.
      rates: that its floors are computed from.
    """
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    known = {} if rates is None else {"rates": dataclasses.asdict(rates)}
    return {"command": command, "date": date, **environment(), **known, **others}
