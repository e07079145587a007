"""The methods by name. A new method is a page in this folder and a line here."""

import difflib
from collections.abc import Iterable

from vila_jax.budgets.cdpruner import CDPruner
from vila_jax.budgets.divprune import DivPrune
from vila_jax.budgets.downsample import Downsample
from vila_jax.budgets.fastervlm import FasterVLM
from vila_jax.budgets.fastv import FastV
from vila_jax.budgets.hiprune import HiPrune
from vila_jax.budgets.hired import Hired
from vila_jax.budgets.learned import Learned
from vila_jax.budgets.method import Method
from vila_jax.budgets.norm import Norm
from vila_jax.budgets.pool import Pool
from vila_jax.budgets.prumerge import PruMerge, PruMergePlus
from vila_jax.budgets.pyramiddrop import PyramidDrop
from vila_jax.budgets.random import Random
from vila_jax.budgets.sparse import Sparse
from vila_jax.budgets.sparsevlm import SparseVLM
from vila_jax.budgets.tome import ToMe
from vila_jax.budgets.tower_norm import TowerNorm
from vila_jax.budgets.uniform import Uniform
from vila_jax.budgets.visionzip import VisionZip
from vila_jax.budgets.vispruner import VisPruner
from vila_jax.errors import BudgetError

METHODS: dict[str, type[Method]] = {  # by stage, in the order of the road; the baselines last
    method.name: method
    for method in (
        Downsample,
        ToMe,
        TowerNorm,
        Hired,
        FasterVLM,
        VisPruner,
        HiPrune,
        DivPrune,
        CDPruner,
        PruMerge,
        PruMergePlus,
        VisionZip,
        Learned,
        FastV,
        PyramidDrop,
        SparseVLM,
        Sparse,
        Norm,
        Random,
        Uniform,
        Pool,
    )
}
ALIASES = {"cls": FasterVLM.name}
"""Other names of methods; a spec is written with the first name."""


def get(name: str) -> type[Method]:
    """The method of that name.

    Raises:
      BudgetError: there is none; the message lists those that there are.
    """
    name = ALIASES.get(name, name)
    if name in METHODS:
        return METHODS[name]
    raise BudgetError(f"unknown budget method {name!r}", fix=f"{suggest(name, (*METHODS, *ALIASES))}.")


def suggest(word: str, allowed: Iterable[str]) -> str:
    """The sentence that lists what is allowed, the nearest match first."""
    names = list(allowed)
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Allowed: {', '.join(names)}" if names else "None is allowed"
