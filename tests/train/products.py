"""FLOPs of the matrix products of a program, read off its jaxpr: the bodies of scans as often as they are run."""

import math


def product_flops(jaxpr):
    """Two for every multiply-add of a `dot_general` in all programs inside as well."""
    return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation):
    if equation.primitive.name == "dot_general":
        (left, _), _ = equation.params["dimension_numbers"]
        contracted = [equation.invars[0].aval.shape[axis] for axis in left]
        return 2 * math.prod(contracted) * math.prod(equation.outvars[0].aval.shape)
    inside = [inner for value in equation.params.values() for inner in _programs(value)]
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    return times * sum(map(product_flops, inside))


def _programs(value):
    if isinstance(value, tuple | list):
        return [inner for one in value for inner in _programs(one)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []
