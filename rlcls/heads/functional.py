"""The heads as functions of arrays, for code that has its own support. Predictions are the first argument.

Edges, bins and atoms are NumPy arrays, lists or tuples that are known when a function is traced. Traced points raise a
TypeError; points that do not increase raise a ValueError. Evenly spaced points give the same numbers as the heads on
`Support.uniform`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from .categorical import HLGauss, OneHot, TwoHot
from .support import On, Support

Points = Sequence[float] | np.ndarray


def hl_gauss_probs(targets: Real[ArrayLike, "*b"], edges: Points, sigma: float) -> Float[Any, "*b k"]:
    """The mass of a normal distribution around each target in the bins between k + 1 edges, renormalised.

    NumPy in, NumPy out. Targets are clipped to the edges.

    Source: Imani & White 2018; Farebrother et al. 2024, listing 1.
    """
    return _hl_gauss(edges, sigma).encode(targets)


def one_hot(targets: Real[ArrayLike, "*b"], edges: Points) -> Float[Any, "*b k"]:
    """1 in the bin that contains the target and 0 in the others, for k + 1 edges. NumPy in, NumPy out."""
    return OneHot(_support(edges, "edges")).encode(targets)


def two_hot(targets: Real[ArrayLike, "*b"], bins: Points) -> Float[Any, "*b k"]:
    """Each target divided between the two nearest of k increasing bins, so that the mean is the target.

    NumPy in, NumPy out. Targets are clipped to the bins.

    >>> two_hot(np.array([0.25]), [-1.0, 0.0, 1.0])
    array([[0.  , 0.75, 0.25]])
    """
    return TwoHot(_support(bins, "centers")).encode(targets)


def from_probs(probs: Float[ArrayLike, "*b k"], bins: Points) -> Float[Any, "*b"]:
    """The mean of each distribution over k bins: the inverse of `two_hot`. NumPy in, NumPy out."""
    return TwoHot(_support(bins, "centers")).decode(probs)


def categorical_l2_project(
    values: Real[ArrayLike, "*b n"], probs: Float[ArrayLike, "*b n"], bins: Points
) -> Float[Any, "*b k"]:
    """The mass `probs` at `values`, each divided between the two nearest of k increasing bins, which keeps the mean.

    Raises:
      ValueError: the shapes of values and probs differ.

    Source: Bellemare et al. 2017, equation 7.
    """
    if np.shape(values) != np.shape(probs) or np.ndim(probs) == 0:
        raise ValueError(
            f"values of shape {np.shape(values)} do not match probs of shape {np.shape(probs)}: "
            "both must have the shape [*b, n]"
        )
    return TwoHot(_support(bins, "centers")).projection.project(probs, values)


def hl_gauss_cross_entropy(
    logits: Float[ArrayLike, "*b k"], targets: Real[ArrayLike, "*b"], *, edges: Points, sigma: float
) -> Float[Array, "*b"]:
    """The cross-entropy of softmax(logits) to `hl_gauss_probs(targets, edges, sigma)`, in nats."""
    return _hl_gauss(edges, sigma).loss(logits, targets)


def two_hot_cross_entropy(
    logits: Float[ArrayLike, "*b k"], targets: Real[ArrayLike, "*b"], *, bins: Points
) -> Float[Array, "*b"]:
    """The cross-entropy of softmax(logits) to `two_hot(targets, bins)`, in nats."""
    return TwoHot(_support(bins, "centers")).loss(logits, targets)


def _hl_gauss(edges: Points, sigma: float) -> HLGauss:
    return HLGauss(_support(edges, "edges"), sigma=sigma)


def _support(points: Points, on: On) -> Support:
    name = "edges" if on == "edges" else "bins"
    if isinstance(points, jax.core.Tracer):
        raise TypeError(f"{name} must be known when a function is traced, not computed inside it: {points}")
    points = np.asarray(points)
    if points.ndim != 1:
        raise ValueError(f"{name} must have one axis, not shape {points.shape}")
    # The rounding errors of np.linspace and jnp.linspace are below this.
    precision = 8 * np.finfo(points.dtype).eps if np.issubdtype(points.dtype, np.floating) else 1e-15
    return _support_at(tuple(points.astype(np.float64).tolist()), on, float(precision))


@functools.lru_cache(maxsize=64)
def _support_at(points: tuple[float, ...], on: On, precision: float) -> Support:
    if len(points) > 2 - (on == "centers"):
        even = np.linspace(points[0], points[-1], len(points))
        if np.allclose(points, even, rtol=0, atol=precision * np.abs(even).max()) and points[0] < points[-1]:
            return Support.uniform(points[0], points[-1], len(points) - (on == "edges"), on=on)
    return Support.arbitrary(points, on=on)
