"""The interface of a head: agents use it without knowing which head they have."""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Real

from rlcls.kernels.arrays import check_floating

from ._arrays import as_outputs, as_scalars, check_outputs


@dataclasses.dataclass(frozen=True)
class Head(abc.ABC):
    """A way to represent a value by the outputs of a network.

    Predictions are the first argument. Functions work element-wise over any leading dimensions and reduce none of
    them. Targets get no gradient. The computation is in float32, or in float64 for float64 outputs.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name of this head in `heads.make`."""

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """The size of the network's last axis."""

    @abc.abstractmethod
    def value(self, outputs: Float[ArrayLike, "*b n"]) -> Float[Array, "*b"]:
        """The scalar that the outputs represent."""

    @abc.abstractmethod
    def loss(self, outputs: Float[ArrayLike, "*b n"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """The loss of each prediction, to be minimised."""

    @abc.abstractmethod
    def divergence(
        self, outputs: Float[ArrayLike, "*b n"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The distance of each prediction from its target: never negative, and 0 for a perfect prediction."""

    @abc.abstractmethod
    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """The share of all scalars that this head clips because it cannot represent them."""

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

        This default is the scalar r + discount * value(next_outputs), of shape [*b], without a gradient.

        Args:
          next_outputs: head outputs of the action to bootstrap from, at the next state.
          rewards: n-step sum of rewards, in the units of the support.
          discounts: gamma**n, or 0 if the episode terminated; a truncated episode keeps gamma**n.

        Source: Farebrother et al. 2024, section 3.
        """
        next_outputs = as_outputs(self, next_outputs, "next_outputs")
        rewards = as_scalars(rewards, "rewards", next_outputs, "next_outputs")
        discounts = as_scalars(discounts, "discounts", next_outputs, "next_outputs")
        return lax.stop_gradient(rewards + discounts * self.value(next_outputs))

    def td_loss(self, outputs: Float[ArrayLike, "*b n"], target: Any) -> Float[Array, "*b"]:
        """The loss of the outputs of the actions taken, for a target from `td_target`."""
        return self.loss(outputs, self._scalar_target(outputs, target))

    def td_divergence(self, outputs: Float[ArrayLike, "*b n"], target: Any) -> Float[Array, "*b"]:
        """The divergence of the outputs from a target of `td_target`: the priority in prioritised replay."""
        return self.divergence(outputs, self._scalar_target(outputs, target))

    def _scalar_target(self, outputs: ArrayLike, target: ArrayLike) -> Float[Array, "*b"]:
        outputs = jnp.asarray(outputs)
        check_outputs(self, outputs, "outputs")
        return as_scalars(target, "target", outputs)


def select(outputs: Float[ArrayLike, "*b a n"], actions: Int[ArrayLike, "*b"]) -> Float[Array, "*b n"]:
    """The outputs of the actions taken.

    An action outside 0, ..., num_actions - 1 selects NaN; -1 does too.

    Raises:
      ValueError: the shape of `actions` differs from the leading dimensions of `outputs`.
      TypeError: `actions` are not integers, or `outputs` are not floating point.
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
    # int8 cannot hold a num_actions above 127.
    actions = actions.astype(jnp.promote_types(actions.dtype, jnp.int32))
    actions = jnp.where(actions < 0, outputs.shape[-2], actions)
    chosen = jnp.take_along_axis(outputs, actions[..., None, None], axis=-2, mode="fill", fill_value=jnp.nan)
    return chosen[..., 0, :]
