"""What the categorical heads share: logits over the bins of a support, and the moments of their softmax."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rlcls import kernels

from ._arrays import as_floating, as_outputs, as_scalars, check_outputs, namespace
from .base import CategoricalHead
from .support import Support


@dataclasses.dataclass(frozen=True)
class BinsHead(CategoricalHead):
    """Logits over bins; subclasses say which histogram stands for a target, by `projection`."""

    support: Support

    def __post_init__(self):
        if not isinstance(self.support, Support):
            raise TypeError(f"{self.name}: support must be a heads.Support, not {self.support!r}")

    @functools.cached_property
    def projection(self) -> Any:
        """How a (squashed) target becomes a histogram: one of `rlcls.kernels`' projections."""
        raise NotImplementedError

    @property
    def num_outputs(self) -> int:
        return self.support.num_bins

    def value(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b"]:
        """The mean of the predicted distribution; exactly 0 for equal logits on a symmetric support.

        With a scalar_transform, the inverse of the mean of the squashed distribution.
        """
        return self.support.unsquash(self._squashed_value(as_outputs(self, outputs)))

    def encode(self, scalars: Real[ArrayLike, "*b"]) -> Float[Any, "*b k"]:
        """The histogram of each scalar, clipped to the support; a NaN scalar makes its own row NaN.

        NumPy in, NumPy out; at least float32, and float64 stays float64.
        """
        scalars = as_floating(scalars, "scalars", namespace(scalars))
        return self.projection.encode(self.support.squash(scalars))

    def decode(self, probs: Float[ArrayLike, "*b k"]) -> Float[Any, "*b"]:
        """The value of each distribution, its probabilities taken to sum to 1. NumPy in, NumPy out."""
        if isinstance(probs, np.ndarray):
            check_outputs(self, probs, "probs")
            probs = probs.astype(np.promote_types(probs.dtype, np.float32))
        else:
            probs = as_outputs(self, probs, "probs")
        return self.support.unsquash(_mean(self.support.centers, probs, None))

    def transform_to_probs(self, target: Real[ArrayLike, "*b"]) -> Float[Any, "*b k"]:
        """`encode`, by the name it has in appendix A of Farebrother et al. 2024."""
        return self.encode(target)

    def transform_from_probs(self, probs: Float[ArrayLike, "*b k"]) -> Float[Any, "*b"]:
        """`decode`, by the name it has in appendix A of Farebrother et al. 2024."""
        return self.decode(probs)

    def probs(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b k"]:
        """softmax(outputs)."""
        return jax.nn.softmax(as_outputs(self, outputs))

    def log_probs(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b k"]:
        """log_softmax(outputs)."""
        return jax.nn.log_softmax(as_outputs(self, outputs))

    def variance(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b"]:
        """The variance of the predicted distribution over `support.values`, in squared units of the scalar.

        A perfect prediction has that of its target: 0.65 squared bin widths for HL-Gauss at a ratio of 0.75.
        """
        probs = self.probs(outputs)
        values = self.support.values
        mean = _mean(values, probs, None)
        errors = _row(values, probs) - mean[..., None]
        return (probs * jnp.square(errors)).sum(-1)

    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """The share of scalars outside the edges of the bins; for two-hot and C51, outside the centers."""
        scalars, grid = self.support.squash(as_floating(scalars, "scalars")), self.projection.grid
        outside = (scalars < grid.low) | (scalars > grid.high)
        return outside.astype(scalars.dtype).mean()

    def to_dict(self) -> dict[str, Any]:
        own = (field.name for field in dataclasses.fields(self) if field.name != "support")
        options = {name: getattr(self, name) for name in own}
        said = {name: value for name, value in options.items() if value is not None}
        return {"name": self.name} | self.support.to_dict() | said

    def _squashed_value(self, outputs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
        # Dividing once, after the sum, is cheaper than a softmax.
        weights = jnp.exp(outputs - lax.stop_gradient(outputs.max(-1, keepdims=True)))
        return _mean(self.support.centers, weights, weights.sum(-1))

    def _target(self, outputs: ArrayLike, scalars: ArrayLike) -> Float[Array, "*b k"]:
        scalars = self.support.squash(as_scalars(scalars, "scalars", jnp.asarray(outputs)))
        return lax.stop_gradient(self.projection.encode(scalars))


def two_hot(support: Support) -> kernels.TwoHot:
    centers = support.centers
    if not support.is_uniform:
        return kernels.IrregularTwoHot.between(centers)
    return kernels.TwoHot(float(centers[0]), float(centers[-1]), support.num_bins)


def _row(values: np.ndarray, like: Any) -> np.ndarray:
    return values.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def _mean(centers: np.ndarray, weights: Any, total: Any) -> Any:
    """The weighted mean of the centers, summed in mirrored pairs; total None means 1.

    Only differences of mirrored weights are multiplied on a symmetric support, so equal ones cancel exactly,
    fused multiply-adds or not.
    """
    half = len(centers) // 2
    upper, lower = weights[..., -half:], weights[..., :half][..., ::-1]
    middle = _middle(centers)
    above, below = centers[-half:] - middle, centers[:half][::-1] - middle
    arms, drifts = (above - below) / 2, (above + below) / 2
    terms = (upper - lower) * _row(arms, weights)
    # Rounding alone must not cost the second sum.
    if (abs(drifts) > 1e-12 * abs(centers).max()).any():
        terms = terms + (upper + lower) * _row(drifts, weights)
    mean = terms.sum(-1)
    if total is not None:
        mean = mean / total
    return mean + weights.dtype.type(middle) if middle else mean


def _middle(centers: np.ndarray) -> float:
    """The middle center; between the two middle ones where their number is even."""
    half = len(centers) // 2
    return float(centers[half] + centers[-half - 1]) / 2
