"""For CPUs: the mass is computed only in the band of bins near the target, where it is not 0.

The loss is the log-sum-exp minus a sum over the band. The gradient is the softmax, corrected inside the band. On a CPU
the error function is expensive and slicing the band is cheap.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ..arrays import sum_dtype, weigh
from . import xla
from .projection import Projection, place, reach

# Computing the mass of every bin is as fast for so few bins, or if the band is more than this share of the row.
_FEW_BINS = 64
_WIDE_SHARE = 0.25


def unsupported(batch: int, padded_bins: int, dtype: np.dtype, projection: Projection) -> str | None:
    """None, because this implementation supports everything; it is slow on accelerators."""
    return None


def forward(
    logits: Float[Array, "b kp"], targets: Float[Array, " b"], projection: Projection
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row."""
    dtype = sum_dtype(logits)
    if _is_dense(projection, dtype):
        return xla.forward(logits, targets, projection)
    row = logits[:, : projection.num_bins].astype(dtype)
    top = row.max(-1)
    base = jnp.where(jnp.isfinite(top), top, 0)
    log_total = jnp.log(jnp.exp(row - base[:, None]).sum(-1))
    start, mass = _band(projection, targets, dtype)
    shifted = _take(logits, start, mass.shape[1]).astype(dtype) - base[:, None]
    score = weigh(mass, shifted).sum(-1)
    return log_total - score, base + log_total


def backward(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Projection,
) -> Float[Array, "b kp"]:
    """The gradient of the logits."""
    if _is_dense(projection, lse.dtype):
        return xla.gradient(logits, targets, lse, d_loss, d_lse, projection)
    lse, d_loss, d_both = lse[:, None], d_loss[:, None], (d_loss + d_lse)[:, None]
    gradient = d_both * jnp.exp(logits.astype(lse.dtype) - lse)
    if logits.shape[1] != projection.num_bins:
        real = jnp.arange(logits.shape[1], dtype=np.int32)[None] < projection.num_bins
        gradient = jnp.where(real, gradient, 0)
    start, mass = _band(projection, targets, lse.dtype)
    band = _take(logits, start, mass.shape[1]).astype(lse.dtype)
    # The gradient inside the band is computed whole. Adding a correction would round to bfloat16 twice.
    inside = d_both * jnp.exp(band - lse) - d_loss * mass
    return _put(gradient.astype(logits.dtype), start, inside.astype(logits.dtype))


def _is_dense(projection: Projection, dtype: np.dtype) -> bool:
    bins = projection.num_bins
    return bins <= _FEW_BINS or sum(reach(projection, dtype)) + 1 > _WIDE_SHARE * bins


def _band(
    projection: Projection, targets: Float[Array, " b"], dtype: np.dtype
) -> tuple[Int[Array, " b"], Float[Array, "b w"]]:
    """The first column of each target's band, and the mass of the band."""
    below, above = reach(projection, dtype)
    width = below + 1 + above
    bins, fractions, scale = place(projection, targets, dtype)
    start = jnp.clip(bins - below, 0, projection.num_bins - width)
    columns = start[:, None] + jnp.arange(width, dtype=np.int32)[None]
    return start, projection.mass(columns, bins[:, None], fractions[:, None], scale[:, None])


def _take(logits: Float[Array, "b kp"], start: Int[Array, " b"], width: int) -> Float[Array, "b w"]:
    return jax.vmap(lambda row, first: lax.dynamic_slice(row, (first,), (width,)))(logits, start)


def _put(
    gradient: Float[Array, "b kp"], start: Int[Array, " b"], band: Float[Array, "b w"]
) -> Float[Array, "b kp"]:
    return jax.vmap(lambda row, first, x: lax.dynamic_update_slice(row, x, (first,)))(gradient, start, band)
