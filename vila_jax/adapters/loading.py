"""The model that `--model_args` describe."""

from typing import Any

from vila_jax.assets import nano
from vila_jax.errors import ConfigError
from vila_jax.model import Model, from_pretrained

_OPTIONS = ("dtype", "revision", "era", "style")
_UNUSED = ("device", "max_batch_size")
"""What the command lines hand over and is of no use: JAX knows its devices, and shapes are static."""


def load(pretrained: str, budget: str | int | float | None = None, **options: Any) -> Model:
    """Loads a model.

    Args:
      pretrained: a folder or a Hub id; `nano` is the embedded model.
      budget: see `budget_text`.
      **options: `dtype` (`auto` leaves it to the device), `revision`, `era` and `style`: see `from_pretrained`.

    Raises:
      ConfigError: an option is unknown.
      VilaError: the model cannot be loaded.
    """
    unknown = [name for name in options if name not in (*_OPTIONS, *_UNUSED)]
    if unknown:
        raise ConfigError(
            f"unknown arguments: {', '.join(unknown)}",
            where="model_args",
            fix=f"Beside those of the harness there are: pretrained, budget, {', '.join(_OPTIONS)}. Where a budget has "
            "options, write ; in place of its commas: budget=hired:0.2;alpha=0.3.",
        )
    given = {name: value for name, value in options.items() if name in _OPTIONS and value is not None}
    if given.get("dtype") == "auto":
        del given["dtype"]
    return from_pretrained(str(nano()) if pretrained == "nano" else pretrained, budget=budget_text(budget), **given)


def budget_text(budget: str | int | float | None) -> str | None:
    """A budget as harnesses hand it over, as `Budget.parse` takes it.

    They split arguments at commas, so that options stand behind `;`; and what looks like a number becomes one: a number
    alone is HiRED's, `64` for tokens and `0.2` for a fraction.
    """
    if budget is None or str(budget).lower() in ("", "none"):
        return None
    if isinstance(budget, int | float):
        return f"hired:{budget}"
    return budget.replace(";", ",")


def batch_rows(batch_size: int | str) -> int:
    """Rows of a batch.

    Raises:
      ConfigError: it is no positive number.
    """
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise ConfigError(f"got {batch_size!r}", where="batch_size", fix="Give a number; shapes are static here.")
    return int(batch_size)
