"""Plain XLA for every platform: three passes forward and one backward, the histogram computed inside them.

The compiler fuses each expression into its reduction, or into the gradient, so that an accelerator has no
[B, K] array but the logits and their gradient. That needs the mass of a bin to be a function of its own
column: the difference of two cumulative tables is kept in memory.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from .band import AxisName, place


def unsupported(batch: int, padded_bins: int, dtype: Any, projection: Any) -> str | None:
    """None: it serves everything."""
    return None


def forward(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    projection: Any,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row; with `axis_name`, of this device's columns alone."""
    columns, real = column_numbers(logits.shape[1], projection, axis_name)
    logits = masked(real, logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), -jnp.inf)
    top = logits.max(-1)
    # A row without a finite logit: -inf less -inf would be NaN here already.
    base = jnp.where(jnp.isfinite(top), top, 0)
    bins, fractions, scale = place(projection, targets, logits.dtype)
    mass = projection.mass(columns, bins[:, None], fractions[:, None], scale[:, None])
    log_total = jnp.log(jnp.exp(logits - base[:, None]).sum(-1))
    # Measured from the largest logit, the loss keeps its digits; that takes all the mass, which sums to 1.
    origin = base if axis_name is None else jnp.zeros_like(base)
    score = masked(real, jnp.where(mass == 0, 0, mass * (logits - origin[:, None])), 0).sum(-1)
    return (base - origin) + log_total - score, base + log_total


def backward(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Any,
    axis_name: AxisName | None = None,
) -> Float[Array, "b kp"]:
    """The gradient of the logits; with `axis_name`, of this device's columns."""
    # Or the compiler would find the histogram of the forward pass here again, and keep a [B, K] part of it.
    targets = lax.optimization_barrier(targets)
    columns, real = column_numbers(logits.shape[1], projection, axis_name)
    bins, fractions, scale = place(projection, targets, lse.dtype)
    mass = projection.mass(columns, bins[:, None], fractions[:, None], scale[:, None])
    base = jnp.where(jnp.isfinite(lse), lse, 0)
    softmax = jnp.exp(logits.astype(lse.dtype) - base[:, None])
    gradient = (d_loss + d_lse)[:, None] * softmax - d_loss[:, None] * mass
    return masked(real, gradient, 0).astype(logits.dtype)


def column_numbers(count: int, projection: Any, axis_name: AxisName | None) -> tuple[Int[Array, "1 kp"], Any]:
    """The numbers of the columns at hand, and which of them are bins; None where no column is padding."""
    columns, total = jnp.arange(count, dtype=np.int32)[None], count
    if axis_name is not None:
        columns, total = columns + lax.axis_index(axis_name) * count, count * lax.axis_size(axis_name)
    return columns, None if total == projection.num_bins else columns < projection.num_bins


def masked(real: Any, x: Any, otherwise: float) -> Any:
    return x if real is None else jnp.where(real, x, otherwise)
