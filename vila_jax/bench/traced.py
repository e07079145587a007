"""Floating-point operations of a program as it will run, counted in its trace.

Where `flops` counts a model from its config, this counts whatever a traced function really multiplies: padding to
static sizes, the scores that a budget asks of the tower, and sequences that become shorter on the way. One multiply-add
counts as two, and only matrix products and convolutions count. Of attention all pairs of positions that are multiplied
count, masked ones included.

A loop counts as often as its trace says; one without a static number of turns, such as that of the decode steps, counts
a single turn. Nothing is compiled, and nothing depends on the device but the choice of kernel.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

_FLASH = "dot_product_attention_fwd"  # cuDNN's attention: one opaque call of q [B, T, N, H] and k [B, S, K, H]


def traced_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of `function(*args)`; arguments may be arrays or their `jax.ShapeDtypeStruct`."""
    return count_flops(jax.make_jaxpr(function)(*args).jaxpr)


def count_flops(jaxpr: Jaxpr) -> int:
    """FLOPs of a trace."""
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_general(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name.startswith(_FLASH):
        (batch, queries, heads, width), keys = _shape(equation.invars[0]), _shape(equation.invars[1])[1]
        return 4 * batch * queries * keys * heads * width
    inner = [count_flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return params["length"] * sum(inner) if name == "scan" else sum(inner)


def _dot_general(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> int:
    """Every output is a sum over the kernel, without the axis of its outputs."""
    kernel = _shape(equation.invars[1])
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // outputs


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
