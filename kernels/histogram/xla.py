"""Plain XLA for every platform: three passes over the logits forward, and one backward.

XLA fuses each expression into its reduction or into the gradient, so an accelerator stores no [B, K] array besides the
logits and their gradient. For this the mass of a bin must be a function of its column; XLA would store the difference
of two cumulative arrays.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..arrays import AxisName, at_least_float32, weigh
from .projection import Projection, place


def forward(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    projection: Projection,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row; with `axis_name`, over this device's columns only."""
    columns, real = column_numbers(logits.shape[1], projection, axis_name)
    logits = masked(real, at_least_float32(logits), -jnp.inf)
    top = logits.max(-1)
    # In a row without a finite logit, -inf minus -inf would be NaN.
    base = jnp.where(jnp.isfinite(top), top, 0)
    bins, fractions, scale = place(projection, targets, logits.dtype)
    mass = projection.mass(columns, bins[:, None], fractions[:, None], scale[:, None])
    log_total = jnp.log(jnp.exp(logits - base[:, None]).sum(-1))
    # Subtracting the largest logit first keeps the digits of the loss. It cancels only if all mass is in these columns.
    origin = base if axis_name is None else jnp.zeros_like(base)
    score = masked(real, weigh(mass, logits - origin[:, None]), 0).sum(-1)
    return (base - origin) + log_total - score, base + log_total


def backward(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Projection,
    axis_name: AxisName | None = None,
) -> Float[Array, "b kp"]:
    """The gradient of the logits; with `axis_name`, of this device's columns."""
    # Without this barrier XLA would share a [B, K] part of the histogram with the forward pass, and store it.
    targets = lax.optimization_barrier(targets)
    return gradient(logits, targets, lse, d_loss, d_lse, projection, axis_name)


def gradient(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Projection,
    axis_name: AxisName | None = None,
) -> Float[Array, "b kp"]:
    """`backward` without its barrier, so that XLA may share the histogram with the forward pass."""
    columns, real = column_numbers(logits.shape[1], projection, axis_name)
    bins, fractions, scale = place(projection, targets, lse.dtype)
    mass = projection.mass(columns, bins[:, None], fractions[:, None], scale[:, None])
    base = jnp.where(jnp.isfinite(lse), lse, 0)
    softmax = jnp.exp(logits.astype(lse.dtype) - base[:, None])
    change = (d_loss + d_lse)[:, None] * softmax - d_loss[:, None] * mass
    return masked(real, change, 0).astype(logits.dtype)


def column_numbers(
    count: int, projection: Projection, axis_name: AxisName | None
) -> tuple[Int[Array, "1 kp"], Bool[Array, "1 kp"] | None]:
    """The numbers of this device's columns, and a mask of those that are bins, or None if no column is padding."""
    columns, total = jnp.arange(count, dtype=np.int32)[None], count
    if axis_name is not None:
        columns, total = columns + lax.axis_index(axis_name) * count, count * lax.axis_size(axis_name)
    return columns, None if total == projection.num_bins else columns < projection.num_bins


def masked(
    real: Bool[Array, "1 kp"] | None, x: Float[Array, "b kp"], otherwise: float
) -> Float[Array, "b kp"]:
    """`x` in the columns that are bins, and `otherwise` in the padding."""
    return x if real is None else jnp.where(real, x, otherwise)
