"""The methods by name. A new method is a page in this folder and a line here."""

import difflib
from collections.abc import Iterable

from vila_jax.budgets.fastv import FastV
from vila_jax.budgets.hired import Hired
from vila_jax.budgets.method import Method
from vila_jax.budgets.pyramiddrop import PyramidDrop
from vila_jax.budgets.random import Random
from vila_jax.budgets.sparse import Sparse
from vila_jax.budgets.sparsevlm import SparseVLM
from vila_jax.errors import BudgetError

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Hired,
        Random,
        FastV,
        PyramidDrop,
        SparseVLM,
        Sparse,
    )
}


def get(name: str) -> type[Method]:
    """The method of that name.

    Raises:
      BudgetError: there is none; the message lists those that there are.
    """
    if name in METHODS:
        return METHODS[name]
    raise BudgetError(f"unknown budget method {name!r}", fix=f"{suggest(name, METHODS)}.")


def suggest(word: str, allowed: Iterable[str]) -> str:
    """The sentence that lists what is allowed, the nearest match first."""
    names = list(allowed)
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Allowed: {', '.join(names)}" if names else "None is allowed"
