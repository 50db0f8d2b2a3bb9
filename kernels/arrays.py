"""Conversions and checks of arrays of NumPy or JAX."""

import functools
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact

AxisName = str | tuple[str, ...]  # one axis of a mesh, or several


def namespace(x: Any) -> ModuleType:
    """numpy for NumPy's arrays and scalars; jax.numpy for JAX's arrays and Python's numbers."""
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp


def at_least_float32(x: ArrayLike, xp: ModuleType = jnp) -> Inexact[Any, "..."]:
    """`x` as an array of `xp`, promoted to at least float32; float64 stays float64."""
    x = xp.asarray(x)
    return x.astype(xp.promote_types(x.dtype, np.float32))


def sum_dtype(*arrays: Array) -> np.dtype:
    """The dtype in which these arrays are summed: float32, or float64 if one of them is float64."""
    return functools.reduce(jnp.promote_types, (x.dtype for x in arrays), np.dtype(np.float32))


def as_real(x: Any, argument: str, xp: ModuleType = jnp) -> Float[Any, "..."]:
    """`at_least_float32(x, xp)`.

    Raises:
      TypeError: `x` does not hold real numbers; the message names `argument`.
    """
    x = xp.asarray(x)
    if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"{argument} must be real, not {x.dtype}")
    return at_least_float32(x, xp)


def check_floating(x: Any, argument: str) -> None:
    """Raises a TypeError that names `argument` if the dtype of `x` is not floating point."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{argument} must be floating point, not {x.dtype}")


def clip(x: Any, low: Any, high: Any) -> Any:
    """`x` limited to [low, high]; NaN stays NaN.

    `jnp.clip` uses XLA's minimum and maximum, which on a CPU may return the bound for a NaN.
    """
    xp = namespace(x)
    return xp.where(x < low, low, xp.where(x > high, high, x))


def weigh(mass: Any, x: Any) -> Any:
    """mass * x, or 0 where the mass is 0, so that a logit of -inf adds nothing where the target has no mass."""
    return jnp.where(mass == 0, 0.0, mass * x)
