"""VILA-family vision-language models in JAX/Flax, with visual tokens as a static budget.

Quick start:

    import vila_jax

    model = vila_jax.from_pretrained("llava-hf/llava-v1.6-vicuna-7b-hf", budget="hired:0.2")
    answer = model.generate("USER: <image>\\nWhat is this? ASSISTANT:", images=["photo.jpg"])
    print(answer.text)
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from vila_jax import errors
from vila_jax.errors import VilaError

if TYPE_CHECKING:
    from vila_jax.budgets import Budget
    from vila_jax.infer.prefixes import PrefixCache
    from vila_jax.model import Model, from_pretrained

# etils reads object stores through TensorFlow wherever that is installed, unless told otherwise before its import.
os.environ.setdefault("EPATH_USE_TF", "false")

__version__ = "0.1.0"

__all__ = ["Budget", "Model", "PrefixCache", "VilaError", "errors", "from_pretrained"]

_LAZY = {
    "Budget": "vila_jax.budgets",
    "Model": "vila_jax.model",
    "PrefixCache": "vila_jax.infer.prefixes",
    "from_pretrained": "vila_jax.model",
}


def __getattr__(name: str) -> Any:
    # On first use, so that `vila-jax --help` does not wait seconds for JAX.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
