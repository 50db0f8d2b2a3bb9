"""Checks of the arguments of heads; they run when a function is traced."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rlcls.kernels.arrays import as_real, at_least_float32, check_floating

MOST_OUTPUTS = 2**20
"""The largest number of bins or quantiles. A larger support would fill the memory before memory is estimated."""


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
            f"{argument} of shape {outputs.shape} {_do(argument)} not fit {head.name}: "
            f"the last axis must be num_outputs = {head.num_outputs}"
        )


def as_scalars(
    scalars: ArrayLike, argument: str, outputs: Array, outputs_argument: str = "outputs"
) -> Float[Array, "*b"]:
    """The scalars in at least float32, checked to have the shape of the outputs without their last axis."""
    scalars = jnp.asarray(scalars)
    check_leading(scalars.shape, argument, outputs, outputs_argument)
    return as_real(scalars, argument)


def check_leading(
    shape: tuple[int, ...], argument: str, outputs: Array, outputs_argument: str = "outputs"
) -> None:
    """Raises a ValueError if `shape` differs from the leading axes of the outputs."""
    if shape != outputs.shape[:-1]:
        raise ValueError(
            f"{argument} of shape {shape} {_do(argument)} not match {outputs_argument} of shape {outputs.shape}: "
            f"{argument} must have shape {outputs.shape[:-1]}"
        )


def check_distribution(head: Any, target: Any, outputs: Array) -> Float[Array, "*b n"]:
    """The target distribution in at least float32, checked to have the shape of the outputs."""
    target = jnp.asarray(target)
    if target.shape == outputs.shape[:-1]:
        raise ValueError(
            f"target of shape {target.shape} holds scalars: the td_loss of {head.name} takes the distribution that "
            f"its td_target returns, of shape {outputs.shape}; use loss for scalars"
        )
    target = as_outputs(head, target, "target")
    check_leading(target.shape[:-1], "target", outputs)
    return target


def check_finite(what: str, value: Any) -> float:
    """The value as a float. Raises an error that names `what` if the value is not a finite number."""
    value = _concrete(value)
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{what} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, not {value!r}")
    return float(value)


def check_positive(what: str, value: Any) -> float:
    """The value as a float. Raises an error that names `what` unless the value is finite and above 0."""
    if check_finite(what, value) <= 0:
        raise ValueError(f"{what} must be positive, not {value!r}")
    return float(value)


def check_integer(what: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as an int. Raises an error that names `what` unless it is an integer from `least` to `most`."""
    value = _concrete(value)
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{what} must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
    if most is not None and value > most:
        raise ValueError(f"{what} must be at most {most}, not {value}")
    return int(value)


def _concrete(value: Any) -> Any:
    """The number in an array without axes, such as jnp.float32(1). Other values, also traced ones, stay as they are."""
    is_array = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, jax.core.Tracer)
    return value.item() if is_array and value.ndim == 0 else value


def _do(argument: str) -> str:
    """The auxiliary verb that agrees with the name of an argument."""
    return "do" if argument.endswith("s") else "does"
