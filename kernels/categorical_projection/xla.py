"""Plain XLA: each atom looks up the two logits it falls between, and the gradient is put back there.

The cross-entropy to a projected distribution is linear in the logits: an atom of mass p that falls between bins
j and j + 1 costs p times the interpolated logit. So the projection is a gather forward and a scatter backward,
B x K each, where a sum over atoms for each bin is B x K x K.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..histogram.xla import column_numbers, masked
from .reference import moved_atoms


def forward(
    logits: Float[Array, "b kp"],
    next_probs: Float[Array, "b k"],
    rewards: Float[Array, " b"],
    discounts: Float[Array, " b"],
    projection: Any,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row."""
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    _, real = column_numbers(logits.shape[1], projection, None)
    row = masked(real, logits.astype(dtype), -jnp.inf)
    top = row.max(-1)
    base = jnp.where(jnp.isfinite(top), top, 0)
    log_total = jnp.log(jnp.exp(row - base[:, None]).sum(-1))
    bins, (low, high) = _shares(next_probs, rewards, discounts, projection, dtype)
    score = 0
    for place, share in ((bins, low), (bins + 1, high)):
        found = jnp.take_along_axis(logits, place, axis=1, mode="promise_in_bounds").astype(dtype)
        score += jnp.where(share == 0, 0, share * (found - base[:, None])).sum(-1)
    return next_probs.sum(-1) * log_total - score, base + log_total


def backward(
    logits: Float[Array, "b kp"],
    next_probs: Float[Array, "b k"],
    rewards: Float[Array, " b"],
    discounts: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Any,
) -> Float[Array, "b kp"]:
    """The gradient of the logits."""
    _, real = column_numbers(logits.shape[1], projection, None)
    softmax = jnp.exp(logits.astype(lse.dtype) - lse[:, None])
    gradient = masked(real, (d_loss * next_probs.sum(-1) + d_lse)[:, None] * softmax, 0)
    bins, (low, high) = _shares(next_probs, rewards, discounts, projection, lse.dtype)
    rows = jnp.arange(len(logits))[:, None]
    for place, share in ((bins, low), (bins + 1, high)):
        gradient = gradient.at[rows, place].add(-d_loss[:, None] * share, mode="promise_in_bounds")
    return gradient.astype(logits.dtype)


def _shares(next_probs: Any, rewards: Any, discounts: Any, projection: Any, dtype: Any) -> Any:
    """The lower bin [B, K] of each atom's two, and the mass that it gives to either."""
    bins, fractions = projection.split(moved_atoms(rewards, discounts, projection))
    fractions, probs = fractions.astype(dtype), next_probs.astype(dtype)
    return bins, (probs * (1 - fractions), probs * fractions)
