"""Checks and conversions at the door of every head; all of them run when a function is traced."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def as_outputs(head: Any, outputs: ArrayLike, argument: str = "outputs") -> Float[Array, "*b n"]:
    """The outputs in at least float32."""
    outputs = jnp.asarray(outputs)
    check_outputs(head, outputs, argument)
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def check_outputs(head: Any, outputs: Any, argument: str) -> None:
    check_floating(outputs, argument)
    if outputs.ndim == 0 or outputs.shape[-1] != head.num_outputs:
        raise ValueError(
            f"{argument} of shape {outputs.shape} do not fit {head.name}: "
            f"the last axis must be num_outputs = {head.num_outputs}"
        )


def check_floating(x: Any, argument: str) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{argument} must be floating point, not {x.dtype}")


def as_scalars(
    scalars: ArrayLike, argument: str, outputs: Array, outputs_argument: str = "outputs"
) -> Float[Array, "*b"]:
    """The scalars in at least float32, one for each of the outputs."""
    scalars = jnp.asarray(scalars)
    check_leading(scalars.shape, argument, outputs, outputs_argument)
    return as_floating(scalars, argument)


def as_floating(x: ArrayLike, argument: str, xp: Any = jnp) -> Float[Any, "..."]:
    """The array, of the namespace asked for, in at least float32; what is not a real number is refused."""
    x = xp.asarray(x)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
        raise TypeError(f"{argument} must be real, not {x.dtype}")
    return x.astype(xp.promote_types(x.dtype, np.float32))


def check_leading(
    shape: tuple[int, ...], argument: str, outputs: Array, outputs_argument: str = "outputs"
) -> None:
    if shape != outputs.shape[:-1]:
        raise ValueError(
            f"{argument} of shape {shape} do not match {outputs_argument} of shape {outputs.shape}: "
            f"{argument} must have shape {outputs.shape[:-1]}"
        )


def check_finite(what: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{what} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, not {value!r}")
    return float(value)


def check_positive(what: str, value: Any) -> float:
    if check_finite(what, value) <= 0:
        raise ValueError(f"{what} must be positive, not {value!r}")
    return float(value)


def check_integer(what: str, value: Any, least: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{what} must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
    return int(value)


def check_choice(what: str, value: Any, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{what} must be {' or '.join(map(repr, choices))}, not {value!r}")


def namespace(x: Any) -> Any:
    """numpy where x is NumPy's, else jax.numpy."""
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp
