"""Regression: the network's one output is the value."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rlcls.kernels.arrays import as_real

from ._arrays import as_outputs, as_scalars, check_positive
from .base import Head


class _ScalarHead(Head):
    @property
    def num_outputs(self) -> int:
        return 1

    def value(self, outputs: Float[ArrayLike, "*b 1"]) -> Float[Array, "*b"]:
        """The output."""
        return as_outputs(self, outputs)[..., 0]

    def divergence(
        self, outputs: Float[ArrayLike, "*b 1"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The absolute error, in the units of the value."""
        return jnp.abs(self._error(outputs, scalars))

    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """Zero, because a scalar head can represent every number."""
        return jnp.zeros((), as_real(scalars, "scalars").dtype)

    def _error(self, outputs: Float[ArrayLike, "*b 1"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        outputs = as_outputs(self, outputs)
        return outputs[..., 0] - lax.stop_gradient(as_scalars(scalars, "scalars", outputs))


@dataclasses.dataclass(frozen=True)
class MSE(_ScalarHead):
    """The squared error: loss(x, t) = (x - t)**2. As in Dopamine's DQN, there is no factor of 1/2.

    >>> MSE().loss(jnp.array([[3.0]]), jnp.array([1.0]))
    Array([4.], dtype=float32)

    Source: Castro et al. 2018 (Dopamine).
    """

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
    """Half the squared error up to an error of `delta`, and a linear loss beyond.

    loss(x, t) = (x - t)**2 / 2 if |x - t| <= delta, else delta * (|x - t| - delta / 2)

    With delta = 1 its gradient is the error clipped to [-1, 1], as in Nature's DQN.

    >>> Huber(delta=1.0).loss(jnp.array([[0.5], [3.0]]), jnp.zeros(2))
    Array([0.125, 2.5  ], dtype=float32)

    Source: Huber 1964; Mnih et al. 2015, methods.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", check_positive("huber: delta", self.delta))

    @property
    def name(self) -> str:
        return "huber"

    def loss(self, outputs: Float[ArrayLike, "*b 1"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """error**2 / 2 where |error| <= delta, else delta * (|error| - delta / 2)."""
        error = jnp.abs(self._error(outputs, scalars))
        inside = jnp.minimum(error, self.delta)
        # The first term is error**2 / 2 up to delta; the second is the linear part beyond delta. A form with branches
        # could take a NaN gradient from the branch that is not used.
        return 0.5 * jnp.square(inside) + self.delta * (error - inside)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "delta": self.delta}
