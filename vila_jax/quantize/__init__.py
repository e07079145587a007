"""Quantisation of a model that answers: weights and caches in fewer bits, by a spec such as `int8,kv=int8`.

    spec         the grammar, and what it asks for
    structure    which weights of a model it means, and how they lie there; bytes that this takes
    device       where it is refused, because it is slower than doing without

The arithmetic is in `vila_jax.nn.quantized`, the cache in `vila_jax.nn.cache`; docs/quantization.md has the numbers.
"""

from vila_jax.quantize.device import check_pays
from vila_jax.quantize.spec import Quantization

__all__ = ["Quantization", "check_pays"]
