"""Binary classification: the network has one output, a logit whose sigmoid is the position between vmin and vmax."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rlcls.kernels.arrays import as_real, clip

from ._arrays import as_outputs, as_scalars, check_finite
from .base import Head


@dataclasses.dataclass(frozen=True)
class BCE(Head):
    """The binary cross-entropy of a value in [vmin, vmax], by default a probability.

    loss(x, t) = -y * log sigmoid(x) - (1 - y) * log(1 - sigmoid(x)) = log(1 + exp(x)) - y * x, in nats, with
    y = (t - vmin) / (vmax - vmin) clipped to [0, 1]. The value is vmin + (vmax - vmin) * sigmoid(x).

    This equals `TwoHot` on two bins; the logit x is the difference of their two logits.

    >>> BCE().loss(jnp.zeros((1, 1)), jnp.ones(1)).round(4)  # log 2
    Array([0.6931], dtype=float32)

    Source: Ayoub et al. 2024 (binary cross-entropy in place of the squared loss in fitted Q-iteration).
    """

    vmin: float = 0.0
    vmax: float = 1.0

    def __post_init__(self) -> None:
        for name in ("vmin", "vmax"):
            object.__setattr__(self, name, check_finite(f"bce: {name}", getattr(self, name)))
        if self.vmin >= self.vmax:
            raise ValueError(f"bce: vmin ({self.vmin}) must be below vmax ({self.vmax})")

    @property
    def name(self) -> str:
        return "bce"

    @property
    def num_outputs(self) -> int:
        return 1

    def value(self, outputs: Float[ArrayLike, "*b 1"]) -> Float[Array, "*b"]:
        """vmin + (vmax - vmin) * sigmoid(output)."""
        position = jax.nn.sigmoid(as_outputs(self, outputs)[..., 0])
        return self.vmin + (self.vmax - self.vmin) * position

    def loss(self, outputs: Float[ArrayLike, "*b 1"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """The binary cross-entropy to y, the scalar's position in [vmin, vmax] clipped to [0, 1], in nats."""
        outputs = as_outputs(self, outputs)
        logits = outputs[..., 0]
        return jax.nn.softplus(logits) - self._position(outputs, scalars) * logits

    def divergence(
        self, outputs: Float[ArrayLike, "*b 1"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The loss minus the entropy of y: the Kullback-Leibler divergence of the prediction from y, in nats."""
        y = self._position(as_outputs(self, outputs), scalars)
        excess = self.loss(outputs, scalars) + _xlogx(y) + _xlogx(1 - y)
        return jnp.where(excess < 0, 0, excess)

    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """The share of scalars outside [vmin, vmax]."""
        scalars = as_real(scalars, "scalars")
        return ((scalars < self.vmin) | (scalars > self.vmax)).astype(scalars.dtype).mean()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name} | dataclasses.asdict(self)

    def _position(self, outputs: Array, scalars: ArrayLike) -> Float[Array, "*b"]:
        scalars = lax.stop_gradient(as_scalars(scalars, "scalars", outputs))
        return clip((scalars - self.vmin) / (self.vmax - self.vmin), 0, 1)


def _xlogx(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return x * jnp.log(jnp.where(x == 0, 1, x))
