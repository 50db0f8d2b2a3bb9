"""What every head offers: one agent takes them all, and never asks which head it has."""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Real

from ._arrays import as_outputs, as_scalars, check_floating, check_outputs


@dataclasses.dataclass(frozen=True)
class Head(abc.ABC):
    """A way to represent a value by the outputs of a network.

    Predictions come first, everything is element-wise over any leading dimensions, nothing is reduced,
    targets get no gradient. The computation is in float32 at least, whatever the outputs' dtype, and float64
    stays float64.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What `heads.make` calls this head."""

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """The size of the network's last axis."""

    @abc.abstractmethod
    def value(self, outputs: Float[ArrayLike, "*b n"]) -> Float[Array, "*b"]:
        """The scalar that the outputs stand for."""

    @abc.abstractmethod
    def loss(self, outputs: Float[ArrayLike, "*b n"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """The loss of each prediction, to be minimised."""

    @abc.abstractmethod
    def divergence(
        self, outputs: Float[ArrayLike, "*b n"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """How far each prediction is from its target: never negative, and 0 when it is right. To plot."""

    @abc.abstractmethod
    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """The share of scalars, over all of them, that this head cannot represent and clips."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values such that heads.make(**head.to_dict()) == head."""

    def td_target(
        self,
        next_outputs: Float[ArrayLike, "*b n"],
        rewards: Real[ArrayLike, "*b"],
        discounts: Real[ArrayLike, "*b"],
    ) -> Any:
        """The target of temporal-difference learning, for `td_loss` and `td_divergence` of the same head.

        Here the scalars r + discount * value(next_outputs), of shape [*b]; no gradient goes through.

        Args:
          next_outputs: head outputs of the action to bootstrap from, at the next state.
          rewards: n-step sum of rewards, in the units of the support.
          discounts: gamma**n, and 0 where the episode ended: a truncation is not an end.

        Source: Farebrother et al. 2024, section 3.
        """
        next_outputs = as_outputs(self, next_outputs, "next_outputs")
        rewards = as_scalars(rewards, "rewards", next_outputs, "next_outputs")
        discounts = as_scalars(discounts, "discounts", next_outputs, "next_outputs")
        return lax.stop_gradient(rewards + discounts * self.value(next_outputs))

    def td_loss(self, outputs: Float[ArrayLike, "*b n"], target: Any) -> Float[Array, "*b"]:
        """The loss of the outputs of the actions taken, against what `td_target` gave."""
        return self.loss(outputs, self._scalar_target(outputs, target))

    def td_divergence(self, outputs: Float[ArrayLike, "*b n"], target: Any) -> Float[Array, "*b"]:
        """How far the outputs are from what `td_target` gave: the priority in prioritised replay."""
        return self.divergence(outputs, self._scalar_target(outputs, target))

    def _scalar_target(self, outputs: ArrayLike, target: ArrayLike) -> Float[Array, "*b"]:
        outputs = jnp.asarray(outputs)
        check_outputs(self, outputs, "outputs")
        return as_scalars(target, "target", outputs)


class CategoricalHead(Head):
    """A head whose outputs are the logits of a distribution over bins.

    Only such a head has `encode`, `decode`, `probs`, `log_probs` and (beside `Quantile`) `variance`: a scalar
    head predicts no distribution, and a made-up one would be plotted as if it did.
    """

    @abc.abstractmethod
    def encode(self, scalars: Real[ArrayLike, "*b"]) -> Float[Any, "*b k"]:
        """The probabilities that a target stands for. NumPy in, NumPy out."""

    @abc.abstractmethod
    def decode(self, probs: Float[ArrayLike, "*b k"]) -> Float[Any, "*b"]:
        """The mean of each distribution. NumPy in, NumPy out."""

    @abc.abstractmethod
    def probs(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b k"]:
        """The predicted probabilities."""

    @abc.abstractmethod
    def log_probs(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b k"]:
        """The logarithms of the predicted probabilities."""

    @abc.abstractmethod
    def variance(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b"]:
        """The variance of the predicted distribution."""


def select(outputs: Float[ArrayLike, "*b a n"], actions: Int[ArrayLike, "*b"]) -> Float[Array, "*b n"]:
    """The outputs of the actions taken.

    An action beyond the last selects NaN; -1 is the last one, as everywhere in NumPy.

    Raises:
      ValueError: `actions` has not the leading dimensions of `outputs`.
      TypeError: `actions` are not integers, or `outputs` not floating point.
    """
    outputs, actions = jnp.asarray(outputs), jnp.asarray(actions)
    check_floating(outputs, "outputs")
    if not jnp.issubdtype(actions.dtype, jnp.integer):
        raise TypeError(f"actions must be integers, not {actions.dtype}")
    if outputs.ndim < 2 or actions.shape != outputs.shape[:-2]:
        raise ValueError(
            f"actions of shape {actions.shape} do not match outputs of shape {outputs.shape}: "
            "outputs [*b, num_actions, n] go with actions [*b]"
        )
    chosen = jnp.take_along_axis(outputs, actions[..., None, None], axis=-2, mode="fill", fill_value=jnp.nan)
    return chosen[..., 0, :]
