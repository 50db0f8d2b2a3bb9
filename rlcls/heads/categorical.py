"""Classification: the network's outputs are the logits of a distribution whose mean is the value."""

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

from ._arrays import as_floating, as_outputs, as_scalars, check_leading, check_outputs, check_positive
from .base import CategoricalHead
from .support import Support


@dataclasses.dataclass(frozen=True)
class _HistogramHead(CategoricalHead):
    """Cross-entropy to a histogram of the target; subclasses say which histogram, by `projection`."""

    support: Support

    @functools.cached_property
    def projection(self) -> kernels.Gaussian | kernels.TwoHot:
        raise NotImplementedError

    @property
    def num_outputs(self) -> int:
        return self.support.num_bins

    def value(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b"]:
        """The mean of the predicted distribution; exactly 0 for equal logits on a symmetric support."""
        outputs = as_outputs(self, outputs)
        # Dividing once, after the sum, is cheaper than a softmax.
        weights = jnp.exp(outputs - lax.stop_gradient(outputs.max(-1, keepdims=True)))
        return self._mean(weights, weights.sum(-1))

    def encode(self, scalars: Real[ArrayLike, "*b"]) -> Float[Any, "*b k"]:
        """The histogram of each scalar, clipped to the support; a NaN scalar makes its own row NaN.

        NumPy in, NumPy out; at least float32, and float64 stays float64.
        """
        if not isinstance(scalars, (np.ndarray, np.generic)):
            scalars = as_floating(scalars, "scalars")
        return self.projection.encode(scalars)

    def decode(self, probs: Float[ArrayLike, "*b k"]) -> Float[Any, "*b"]:
        """The mean of each distribution, its probabilities taken to sum to 1. NumPy in, NumPy out."""
        if isinstance(probs, np.ndarray):
            check_outputs(self, probs, "probs")
            return self._mean(probs.astype(np.promote_types(probs.dtype, np.float32)), None)
        return self._mean(as_outputs(self, probs, "probs"), None)

    def probs(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b k"]:
        """softmax(outputs)."""
        return jax.nn.softmax(as_outputs(self, outputs))

    def log_probs(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b k"]:
        """log_softmax(outputs)."""
        return jax.nn.log_softmax(as_outputs(self, outputs))

    def loss(self, outputs: Float[ArrayLike, "*b k"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """The cross-entropy of the prediction to `encode(scalars)`, in nats.

        Source: Farebrother et al. 2024, equation 3.1.
        """
        return _cross_entropy(as_outputs(self, outputs), self._target(outputs, scalars))

    def divergence(
        self, outputs: Float[ArrayLike, "*b k"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The Kullback-Leibler divergence from the prediction to `encode(scalars)`, in nats.

        The cross-entropy less its floor, the entropy of the target, which is 1.2 nats for HL-Gauss at a ratio
        of 0.75 and depends on the target alone; so this, and not the loss, compares heads and ranks
        transitions.
        """
        return _divergence(as_outputs(self, outputs), self._target(outputs, scalars))

    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """The share of scalars outside the edges of the bins; for two-hot and C51, outside the centers."""
        scalars, grid = as_floating(scalars, "scalars"), self.projection.grid
        outside = (scalars < grid.low) | (scalars > grid.high)
        return outside.astype(scalars.dtype).mean()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name} | dataclasses.asdict(self.support)

    def _target(self, outputs: ArrayLike, scalars: ArrayLike) -> Float[Array, "*b k"]:
        scalars = as_scalars(scalars, "scalars", jnp.asarray(outputs))
        return lax.stop_gradient(self.projection.encode(scalars))

    def _mean(self, weights: Any, total: Any) -> Any:
        """The weighted mean of the centers, summed in mirrored pairs; total None means 1.

        Only differences of mirrored weights are multiplied, so equal ones cancel exactly, fused multiply-adds
        or not.
        """
        half = self.support.num_bins // 2
        upper = weights[..., -half:]
        lower = weights[..., :half][..., ::-1]
        middle = (self.support.centers[0] + self.support.centers[-1]) / 2
        arms = (self.support.centers[-half:] - middle).astype(weights.dtype)
        mean = ((upper - lower) * arms.reshape((1,) * (weights.ndim - 1) + (-1,))).sum(-1)
        if total is not None:
            mean = mean / total
        return mean + weights.dtype.type(middle) if middle else mean


class TwoHot(_HistogramHead):
    """The target shared between its two nearest centers, so that decoding gives it back.

    Source: Farebrother et al. 2024, section 3.1, in the form that keeps the mean.
    """

    @property
    def name(self) -> str:
        return "two_hot"

    @functools.cached_property
    def projection(self) -> kernels.TwoHot:
        centers = self.support.centers
        return kernels.TwoHot(float(centers[0]), float(centers[-1]), self.support.num_bins)


@dataclasses.dataclass(frozen=True)
class HLGauss(_HistogramHead):
    """The target smeared by a normal distribution over about six bins: the paper's classification loss.

    `sigma_ratio` is sigma over the width of a bin. Within three sigma of an edge a target decodes to less
    than itself (by 0.7 bins at the edge), because what the distribution has beyond the edge is cut off: make
    the support that much wider than the values.

    Source: Imani & White 2018; Farebrother et al. 2024, section 3.1.
    """

    sigma_ratio: float = 0.75

    def __post_init__(self):
        object.__setattr__(self, "sigma_ratio", check_positive("hlgauss: sigma_ratio", self.sigma_ratio))

    @property
    def name(self) -> str:
        return "hlgauss"

    @property
    def sigma(self) -> float:
        """The standard deviation, in the units of the support."""
        return self.sigma_ratio * self.support.width

    @functools.cached_property
    def projection(self) -> kernels.Gaussian:
        return kernels.Gaussian(
            self.support.low_edge, self.support.high_edge, self.support.num_bins, self.sigma
        )

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"sigma_ratio": self.sigma_ratio}


class C51(TwoHot):
    """The distribution of returns, backed up as a distribution.

    Given scalars it is `TwoHot`; its `td_target` is the whole distribution of the next state, moved and
    projected.

    Source: Bellemare et al. 2017.
    """

    @property
    def name(self) -> str:
        return "c51"

    def td_target(
        self,
        next_outputs: Float[ArrayLike, "*b k"],
        rewards: Real[ArrayLike, "*b"],
        discounts: Real[ArrayLike, "*b"],
    ) -> Float[Array, "*b k"]:
        """The distribution of r + discount * (next return), projected on the support; no gradient through it.

        Each atom's mass is shared between its two nearest neighbours: the mean stays, but for what is
        clipped.

        Args:
          next_outputs: head outputs of the action to bootstrap from, at the next state.
          rewards: n-step sum of rewards, in the units of the support.
          discounts: gamma**n, and 0 where the episode ended: a truncation is not an end.

        Source: Bellemare et al. 2017, algorithm 1.
        """
        next_outputs = as_outputs(self, next_outputs, "next_outputs")
        rewards = as_scalars(rewards, "rewards", next_outputs, "next_outputs")
        discounts = as_scalars(discounts, "discounts", next_outputs, "next_outputs")
        probs = jax.nn.softmax(next_outputs)
        centers = jnp.asarray(self.support.centers, probs.dtype).reshape((1,) * rewards.ndim + (-1,))
        moved = rewards[..., None] + discounts[..., None] * centers
        return lax.stop_gradient(self.projection.project(probs, moved))

    def td_loss(
        self, outputs: Float[ArrayLike, "*b k"], target: Float[ArrayLike, "*b k"]
    ) -> Float[Array, "*b"]:
        """The cross-entropy of the prediction to the projected distribution, in nats."""
        return _cross_entropy(as_outputs(self, outputs), self._projected(outputs, target))

    def td_divergence(
        self, outputs: Float[ArrayLike, "*b k"], target: Float[ArrayLike, "*b k"]
    ) -> Float[Array, "*b"]:
        """The Kullback-Leibler divergence from the prediction to the projected distribution, in nats."""
        return _divergence(as_outputs(self, outputs), self._projected(outputs, target))

    def _projected(self, outputs: ArrayLike, target: ArrayLike) -> Float[Array, "*b k"]:
        target = as_outputs(self, target, "target")
        check_leading(target.shape[:-1], "target", jnp.asarray(outputs))
        return lax.stop_gradient(target)


def _cross_entropy(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    # A bin that may not be predicted (logit -inf) costs nothing where the target has no mass.
    return -jnp.where(probs == 0, 0, probs * jax.nn.log_softmax(logits)).sum(-1)


def _divergence(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    empty = probs == 0
    log_ratio = jnp.log(jnp.where(empty, 1, probs)) - jax.nn.log_softmax(logits)
    divergence = jnp.where(empty, 0, probs * log_ratio).sum(-1)
    # Rounding must not make a priority negative; a maximum could lose a NaN.
    return jnp.where(divergence < 0, 0, divergence)
