"""Where quantisation is refused, because it does not make anything faster there.

What is read at every step becomes half or a quarter as much; whether a step becomes shorter depends on the compiler. On
CPUs it does not: XLA writes the converted weights out before each product (`docs/quantization.md` has the numbers).
"""

from typing import Any

import jax

from vila_jax.errors import QuantizationError
from vila_jax.quantize.spec import Quantization

_FP8 = 8.9
"""Compute capability of the first NVIDIA devices that convert it in hardware."""


def check_pays(quantization: Quantization | None, device: Any = None) -> None:
    """Refuses what is slower than doing without, unless it is wanted all the same (`force`).

    Args:
      device: the `jax.Device` that the model runs on; the default device when absent.

    Raises:
      QuantizationError: it does not pay on this device.
    """
    if quantization is None or quantization.force:
        return
    reason = _why_not(quantization, device or jax.devices()[0])
    if reason is not None:
        raise QuantizationError(
            f"{quantization} makes a model smaller but slower here: {reason}",
            where="quantize",
            fix=f"Leave it out, or say {str(quantization) + ',force'!r} if memory or accuracy is what matters.",
        )


def _why_not(quantization: Quantization, device: Any) -> str | None:
    if device.platform == "cpu":
        return "XLA for CPUs writes converted weights and caches out before it multiplies with them"
    if quantization.weights == "fp8":
        capability = float(getattr(device, "compute_capability", 0) or 0)
        if device.platform != "gpu" or capability < _FP8:
            return f"{device.device_kind} has no 8-bit floating point"
    return None
