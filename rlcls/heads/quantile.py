"""Quantile regression: the network's outputs are quantiles of the return, and their mean is the value."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from ._arrays import as_floating, as_outputs, as_scalars, check_integer, check_leading, check_positive
from .base import Head


@dataclasses.dataclass(frozen=True)
class Quantile(Head):
    """QR-DQN: `num_quantiles` quantiles of the return, at the middles of equal shares of probability.

    `kappa` is the error at which the loss turns linear. It needs no support.

    Source: Dabney et al. 2018.
    """

    num_quantiles: int = 200
    kappa: float = 1.0

    def __post_init__(self):
        count = check_integer("quantile: num_quantiles", self.num_quantiles, 1)
        object.__setattr__(self, "num_quantiles", count)
        object.__setattr__(self, "kappa", check_positive("quantile: kappa", self.kappa))

    @property
    def name(self) -> str:
        return "quantile"

    @property
    def num_outputs(self) -> int:
        return self.num_quantiles

    def value(self, outputs: Float[ArrayLike, "*b n"]) -> Float[Array, "*b"]:
        """The mean of the quantiles."""
        return as_outputs(self, outputs).mean(-1)

    def variance(self, outputs: Float[ArrayLike, "*b n"]) -> Float[Array, "*b"]:
        """The variance of the quantiles."""
        return as_outputs(self, outputs).var(-1)

    def loss(self, outputs: Float[ArrayLike, "*b n"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """The quantile Huber loss to one scalar, summed over the quantiles.

        Source: Dabney et al. 2018, equation 10.
        """
        outputs = as_outputs(self, outputs)
        return quantile_huber(outputs, as_scalars(scalars, "scalars", outputs)[..., None], kappa=self.kappa)

    def divergence(
        self, outputs: Float[ArrayLike, "*b n"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The loss itself: 0 when every quantile is the scalar."""
        return self.loss(outputs, scalars)

    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """Zero: quantiles represent every number."""
        return jnp.zeros((), as_floating(scalars, "scalars").dtype)

    def td_target(
        self,
        next_outputs: Float[ArrayLike, "*b n"],
        rewards: Real[ArrayLike, "*b"],
        discounts: Real[ArrayLike, "*b"],
    ) -> Float[Array, "*b n"]:
        """The quantiles r + discount * next_outputs, no gradient through them.

        Args:
          next_outputs: head outputs of the action to bootstrap from, at the next state.
          rewards: n-step sum of rewards.
          discounts: gamma**n, and 0 where the episode ended: a truncation is not an end.
        """
        next_outputs = as_outputs(self, next_outputs, "next_outputs")
        rewards = as_scalars(rewards, "rewards", next_outputs, "next_outputs")
        discounts = as_scalars(discounts, "discounts", next_outputs, "next_outputs")
        return lax.stop_gradient(rewards[..., None] + discounts[..., None] * next_outputs)

    def td_loss(
        self, outputs: Float[ArrayLike, "*b n"], target: Float[ArrayLike, "*b n"]
    ) -> Float[Array, "*b"]:
        """The quantile Huber loss: summed over predicted quantiles, its mean over those of the target.

        Source: Dabney et al. 2018, algorithm 1.
        """
        return quantile_huber(as_outputs(self, outputs), as_outputs(self, target, "target"), kappa=self.kappa)

    def td_divergence(
        self, outputs: Float[ArrayLike, "*b n"], target: Float[ArrayLike, "*b n"]
    ) -> Float[Array, "*b"]:
        """The loss itself."""
        return self.td_loss(outputs, target)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name} | dataclasses.asdict(self)


def quantile_huber(
    quantiles: Float[ArrayLike, "*b n"], targets: Real[ArrayLike, "*b m"], *, kappa: float = 1.0
) -> Float[Array, "*b"]:
    """The quantile Huber loss of predicted quantiles to samples (or quantiles) of the target.

    |tau_i - [u < 0]| * huber(u, kappa) / kappa with u = targets[j] - quantiles[i] and tau_i = (i + 1/2) / n,
    summed over i, its mean over j. No gradient through the targets.

    Raises:
      ValueError: the leading dimensions differ.

    Source: Dabney et al. 2018, equations 9 and 10.
    """
    quantiles, targets = as_floating(quantiles, "quantiles"), as_floating(targets, "targets")
    check_leading(targets.shape[:-1], "targets", quantiles, "quantiles")
    n = quantiles.shape[-1]
    levels = ((np.arange(n) + 0.5) / n).astype(quantiles.dtype).reshape((1,) * quantiles.ndim + (-1,))
    errors = lax.stop_gradient(targets)[..., :, None] - quantiles[..., None, :]
    distance = jnp.abs(errors)
    inside = jnp.minimum(distance, kappa)
    huber = 0.5 * jnp.square(inside) + kappa * (distance - inside)
    weights = jnp.abs(levels - lax.stop_gradient(errors < 0).astype(errors.dtype))
    return (weights * huber / kappa).mean(-2).sum(-1)
