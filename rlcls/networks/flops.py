"""Counts the floating-point operations of a function."""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """The number of floating-point operations of the convolutions and matrix products in `function(*arguments)`.

    A multiplication and an addition count as two. As in published counts, products with padding are counted, and other
    operations (norms, ReLUs, the optimiser) are not. The function is only traced, so the arguments may be
    `jax.ShapeDtypeStruct`s.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    params = equation.params
    if equation.primitive.name == "dot_general":
        left, right = (operand.aval.shape for operand in equation.invars)
        (_, contracted), (_, batch) = params["dimension_numbers"]
        own = [length for axis, length in enumerate(right) if axis not in (*contracted, *batch)]
        return 2 * math.prod(left) * math.prod(own)
    if equation.primitive.name == "conv_general_dilated":
        kernel, layout = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        per_output = math.prod(kernel) // kernel[layout[0]]
        # The input gradient of a strided convolution inserts zeros between the strides, which do not count.
        return 2 * math.prod(equation.outvars[0].aval.shape) * per_output // math.prod(params["lhs_dilation"])
    inner = sum(_of_jaxpr(found) for value in params.values() for found in _jaxprs(value))
    return inner * params.get("length", 1) if equation.primitive.name == "scan" else inner


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [found for each in value for found in _jaxprs(each)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []
