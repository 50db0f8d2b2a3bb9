"""The cross-entropy of logits to a moved and projected distribution, which is never formed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from ..histogram import dispatch
from ..histogram.api import as_real, over_devices, poison
from ..histogram.band import AxisName
from ..histogram.projection import TwoHot
from . import reference, xla

IMPLEMENTATIONS = ("reference", "xla")


def categorical_projection_cross_entropy(
    logits: Float[ArrayLike, "*b k"],
    next_probs: Float[ArrayLike, "*b n"],
    rewards: Real[ArrayLike, "*b"],
    discounts: Real[ArrayLike, "*b"],
    projection: TwoHot,
    *,
    weights: Real[ArrayLike, "*b"] | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    axis_name: AxisName | None = None,
) -> Any:
    """The cross-entropy of softmax(logits) to the distribution of r + discount * (next return), in nats.

    The next return is distributed by `next_probs` over the centers of the projection; each atom's mass, moved,
    is shared between its two nearest centers, or clipped to the ends. Nothing but the logits has a gradient.

    Args:
      logits: at least `projection.num_bins` per row; what is beyond is padding, and ignored.
      next_probs: the probabilities at the next state, `projection.num_bins` per row, summing to 1.
      rewards: n-step sums of rewards, in the units of the projection.
      discounts: gamma**n, and 0 where the episode ended.
      projection: `TwoHot`, of equal widths.
      weights: a factor of each loss.
      return_lse: also gives the log-sum-exp of each row, as a second result.
      implementation: "reference" (a sum over atoms for every bin), "xla", or None for the faster.
      axis_name: inside `jax.shard_map`, the mesh axis (or axes) that the bins are sharded over: `logits` are then this
        device's equal share of the columns, in the order of the axis, `next_probs` whole on every device, as its
        atoms move from share to share, and so are the results.

    Raises:
      TypeError: logits or next_probs are not floating point, others not real, or the projection is no `TwoHot`.
      ValueError: shapes do not match, or the implementation is unknown or cannot serve.

    Source: Bellemare et al. 2017, algorithm 1.
    """
    if type(projection) is not TwoHot:
        raise TypeError(f"projection must be a TwoHot of equal widths, not {projection!r}")
    logits, next_probs = jnp.asarray(logits), jnp.asarray(next_probs)
    scalars = {"rewards": as_real("rewards", rewards), "discounts": as_real("discounts", discounts)}
    if weights is not None:
        scalars["weights"] = as_real("weights", weights)
    dispatch.check_known(implementation, IMPLEMENTATIONS)
    if axis_name is not None and implementation == "reference":
        raise ValueError(f"implementation 'reference' cannot serve: {dispatch.SHARDED}")
    for argument, x in (("logits", logits), ("next_probs", next_probs)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{argument} must be floating point, not {x.dtype}")
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    if logits.ndim == 0 or logits.shape[-1] * devices < projection.num_bins:
        raise ValueError(f"logits of shape {logits.shape} have fewer columns than {projection}")
    leading = logits.shape[:-1]
    for argument, x in scalars.items():
        if x.shape != leading:
            raise ValueError(f"{argument} of shape {x.shape} do not match logits of shape {logits.shape}")
    if next_probs.shape != (*leading, projection.num_bins):
        raise ValueError(
            f"next_probs of shape {next_probs.shape} must have shape {(*leading, projection.num_bins)}"
        )
    flat = logits.reshape(-1, logits.shape[-1])
    rest = (
        next_probs.reshape(-1, projection.num_bins),
        scalars["rewards"].reshape(-1),
        scalars["discounts"].reshape(-1),
    )
    rest = lax.stop_gradient(rest)
    if implementation == "reference":
        loss, lse = reference.forward(flat, *rest, projection)
    else:
        loss, lse = _fused(flat, *rest, projection, axis_name)
    if axis_name is not None:
        loss, lse = over_devices(loss, lse, axis_name)
    loss, lse = loss.reshape(leading), lse.reshape(leading)
    if weights is not None:
        loss = loss * scalars["weights"].astype(loss.dtype)
    return (loss, lse) if return_lse else loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _fused(
    logits: Any, next_probs: Any, rewards: Any, discounts: Any, projection: Any, axis_name: AxisName | None
) -> Any:
    return xla.forward(logits, next_probs, rewards, discounts, projection, axis_name)


def _forward(
    logits: Any, next_probs: Any, rewards: Any, discounts: Any, projection: Any, axis_name: AxisName | None
) -> Any:
    loss, lse = _fused(logits, next_probs, rewards, discounts, projection, axis_name)
    return (loss, lse), (logits, next_probs, rewards, discounts, lse)


def _backward(projection: Any, axis_name: AxisName | None, saved: Any, cotangents: Any) -> Any:
    logits, next_probs, rewards, discounts, lse = saved
    d_loss, d_lse = cotangents
    # Any of these without a number makes the loss of its row NaN; so it does with the gradient.
    d_loss = poison(d_loss, rewards + discounts + next_probs.sum(-1))
    d_logits = xla.backward(logits, next_probs, rewards, discounts, lse, d_loss, d_lse, projection, axis_name)
    return d_logits, None, None, None


_fused.defvjp(_forward, _backward)
