"""Checks of the arguments of heads; they run when a function is traced."""

import math
import numbers
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rlcls.kernels.arrays import as_real, at_least_float32, check_floating


def as_outputs(head: Any, outputs: ArrayLike, argument: str = "outputs") -> Float[Array, "*b n"]:
    """The outputs, checked, in at least float32."""
    outputs = jnp.asarray(outputs)
    check_outputs(head, outputs, argument)
    return at_least_float32(outputs)


def check_outputs(head: Any, outputs: Any, argument: str) -> None:
    """Raises an error if the outputs are not floating point, or their last axis is not `head.num_outputs`."""
    check_floating(outputs, argument)
    if outputs.ndim == 0 or outputs.shape[-1] != head.num_outputs:
        raise ValueError(
            f"{argument} of shape {outputs.shape} do not fit {head.name}: "
            f"the last axis must be num_outputs = {head.num_outputs}"
        )


def as_scalars(
    scalars: ArrayLike, argument: str, outputs: Array, outputs_argument: str = "outputs"
) -> Float[Array, "*b"]:
    """The scalars in at least float32, checked to be one for each of the outputs."""
    scalars = jnp.asarray(scalars)
    check_leading(scalars.shape, argument, outputs, outputs_argument)
    return as_real(scalars, argument)


def check_leading(
    shape: tuple[int, ...], argument: str, outputs: Array, outputs_argument: str = "outputs"
) -> None:
    """Raises a ValueError if `shape` differs from the leading axes of the outputs."""
    if shape != outputs.shape[:-1]:
        raise ValueError(
            f"{argument} of shape {shape} do not match {outputs_argument} of shape {outputs.shape}: "
            f"{argument} must have shape {outputs.shape[:-1]}"
        )


def check_finite(what: str, value: Any) -> float:
    """The value as a float; an error calls it `what` if it is no finite number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{what} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, not {value!r}")
    return float(value)


def check_positive(what: str, value: Any) -> float:
    """`check_finite`, and the value must be above 0."""
    if check_finite(what, value) <= 0:
        raise ValueError(f"{what} must be positive, not {value!r}")
    return float(value)


def check_integer(what: str, value: Any, least: int) -> int:
    """The value as an int; an error calls it `what` if it is no integer or below `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{what} must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
    return int(value)
