"""The cross-entropy of logits to a distribution that is scaled, shifted and projected, without it in memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from ..arrays import AxisName, as_real, check_floating
from ..histogram import dispatch
from ..histogram.api import finish, poison
from ..histogram.projection import TwoHot
from . import reference, xla


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

    loss = -sum_i p_i * log softmax(logits)_i with p = sum_j next_probs_j * two_hot(r + discount * z_j)

    where z_j are the centers of the projection. The atom at z_j moves to r + discount * z_j, where its mass is divided
    between the two nearest centers; beyond the outermost center it is put on that center. Only the logits get a
    gradient.

    Args:
      logits: at least `projection.num_bins` per row; further columns are padding, which is ignored.
      next_probs: the probabilities at the next state, `projection.num_bins` per row, summing to 1.
      rewards: n-step sums of rewards, in the units of the projection.
      discounts: gamma**n, or 0 where the episode terminated.
      projection: a `TwoHot` of equal widths.
      weights: a factor for each loss.
      return_lse: whether to return the log-sum-exp of each row as a second result.
      implementation: "reference" (a sum over atoms for every bin) or "xla". None means "xla".
      axis_name: inside `jax.shard_map`, the mesh axis (or axes) over which the bins are sharded. `logits` are then
        this device's equal share of the columns, in the order of the axis. Every device needs whole rows of
        `next_probs`, because atoms move between the shares, and returns the results of whole rows.

    Raises:
      TypeError: logits or next_probs are not floating point, another array is not real, or the projection is not a
        `TwoHot`.
      ValueError: shapes do not match, or the implementation is unknown or cannot serve.

    Source: Bellemare et al. 2017, algorithm 1.
    """
    if type(projection) is not TwoHot:
        raise TypeError(f"projection must be a TwoHot of equal widths, not {projection!r}")
    logits, next_probs = jnp.asarray(logits), jnp.asarray(next_probs)
    scalars = {"rewards": as_real(rewards, "rewards"), "discounts": as_real(discounts, "discounts")}
    check_floating(logits, "logits")
    check_floating(next_probs, "next_probs")
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
    flat, sharded = logits.reshape(-1, logits.shape[-1]), axis_name is not None
    name = dispatch.choose(
        implementation,
        flat.shape,
        flat.dtype,
        projection,
        operation="categorical_projection",
        sharded=sharded,
    )
    rest = (
        next_probs.reshape(-1, projection.num_bins),
        scalars["rewards"].reshape(-1),
        scalars["discounts"].reshape(-1),
    )
    rest = lax.stop_gradient(rest)
    if name == "reference":
        loss, lse = reference.forward(flat, *rest, projection)
    else:
        loss, lse = _fused(flat, *rest, projection, axis_name)
    return finish(loss, lse, leading, weights, return_lse, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _fused(
    logits: Array,
    next_probs: Array,
    rewards: Array,
    discounts: Array,
    projection: TwoHot,
    axis_name: AxisName | None,
) -> tuple[Array, Array]:
    return xla.forward(logits, next_probs, rewards, discounts, projection, axis_name)


def _forward(
    logits: Array,
    next_probs: Array,
    rewards: Array,
    discounts: Array,
    projection: TwoHot,
    axis_name: AxisName | None,
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    loss, lse = _fused(logits, next_probs, rewards, discounts, projection, axis_name)
    return (loss, lse), (logits, next_probs, rewards, discounts, lse)


def _backward(
    projection: TwoHot, axis_name: AxisName | None, saved: tuple[Array, ...], cotangents: tuple[Array, Array]
) -> tuple[Array, None, None, None]:
    logits, next_probs, rewards, discounts, lse = saved
    d_loss, d_lse = cotangents
    # A NaN in any of these makes the loss of its row NaN. This line does the same to the gradient.
    d_loss = poison(d_loss, rewards + discounts + next_probs.sum(-1))
    d_logits = xla.backward(logits, next_probs, rewards, discounts, lse, d_loss, d_lse, projection, axis_name)
    return d_logits, None, None, None


_fused.defvjp(_forward, _backward)
