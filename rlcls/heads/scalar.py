"""Regression: the network's one output is the value."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from ._arrays import as_floating, as_outputs, as_scalars, check_positive
from .base import Head


class _ScalarHead(Head):
    @property
    def num_outputs(self) -> int:
        return 1

    def value(self, outputs: Float[ArrayLike, "*b 1"]) -> Float[Array, "*b"]:
        """The output itself."""
        return as_outputs(self, outputs)[..., 0]

    def divergence(
        self, outputs: Float[ArrayLike, "*b 1"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The absolute error, in the units of the value."""
        return jnp.abs(self._error(outputs, scalars))

    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """Zero: a scalar head represents every number."""
        return jnp.zeros((), as_floating(scalars, "scalars").dtype)

    def _error(self, outputs: Float[ArrayLike, "*b 1"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        outputs = as_outputs(self, outputs)
        return outputs[..., 0] - lax.stop_gradient(as_scalars(scalars, "scalars", outputs))


@dataclasses.dataclass(frozen=True)
class MSE(_ScalarHead):
    """The squared error, without a half: what Dopamine's DQN minimises."""

    @property
    def name(self) -> str:
        return "mse"

    def loss(self, outputs: Float[ArrayLike, "*b 1"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """(output - scalar)**2."""
        return jnp.square(self._error(outputs, scalars))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}


@dataclasses.dataclass(frozen=True)
class Huber(_ScalarHead):
    """Half the squared error up to `delta`, linear beyond: the error that Nature's DQN clips, as a loss.

    Source: Huber 1964; Mnih et al. 2015, methods.
    """

    delta: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "delta", check_positive("huber: delta", self.delta))

    @property
    def name(self) -> str:
        return "huber"

    def loss(self, outputs: Float[ArrayLike, "*b 1"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """error**2 / 2 where |error| <= delta, else delta * (|error| - delta / 2)."""
        error = jnp.abs(self._error(outputs, scalars))
        inside = jnp.minimum(error, self.delta)
        # = error**2 / 2 inside; beyond, the linear part is added. No branch, so no NaN from the one not
        # taken.
        return 0.5 * jnp.square(inside) + self.delta * (error - inside)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "delta": self.delta}
