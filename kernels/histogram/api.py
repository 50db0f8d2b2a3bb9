"""The cross-entropy of logits to histograms of scalars, without the histograms in memory.

Each backend is a module (`xla`, `cpu`, `mosaic_tpu`, `mosaic_gpu`) that is imported at its first use. It has three
functions; `xla` has no `unsupported`, because it supports everything. Logits are B rows of Kp >= projection.num_bins:

    forward(logits [B, Kp], targets [B], projection) -> (loss [B], lse [B])
    backward(logits, targets, lse [B], d_loss [B], d_lse [B], projection) -> d_logits [B, Kp]
    unsupported(batch, padded_bins, dtype, projection) -> None, or one line that says why it cannot compute these

* logits are float32, bfloat16 or float16, or float64 if the backend allows it; targets are float32 or float64.
  loss, lse, d_loss and d_lse are float32, or float64 for float64 logits. d_logits has the dtype of the logits.
* Columns from projection.num_bins on are padding. They contribute nothing to loss or lse, even if they hold NaN, and
  their gradient is exactly 0.
* With p the histogram, loss = lse - sum(p * logits) and d_logits = (d_loss + d_lse) * softmax - d_loss * p. The sum is
  over the columns where p is not 0, so a logit of -inf elsewhere adds nothing.
* A backend may return anything as the loss and gradient of a row with a NaN target, because this module sets them to
  NaN. The lse of such a row is that of its logits.
* The forward pass saves logits, targets and lse only. The backward pass computes the histogram again.

This module has the checks, the custom VJP, and the handling of leading dimensions and weights. `reference` is the
definition in plain JAX, differentiated by JAX.
"""

import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from ..arrays import AxisName, as_real, check_floating
from . import dispatch, reference
from .projection import Projection


@overload
def histogram_cross_entropy(
    logits: Float[ArrayLike, "*b k"],
    targets: Real[ArrayLike, "*b"],
    projection: Projection,
    *,
    weights: Real[ArrayLike, "*b"] | None = ...,
    return_lse: Literal[False] = ...,
    implementation: str | None = ...,
    axis_name: AxisName | None = ...,
) -> Float[Array, "*b"]: ...


@overload
def histogram_cross_entropy(
    logits: Float[ArrayLike, "*b k"],
    targets: Real[ArrayLike, "*b"],
    projection: Projection,
    *,
    weights: Real[ArrayLike, "*b"] | None = ...,
    return_lse: Literal[True],
    implementation: str | None = ...,
    axis_name: AxisName | None = ...,
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]: ...


def histogram_cross_entropy(
    logits: Float[ArrayLike, "*b k"],
    targets: Real[ArrayLike, "*b"],
    projection: Projection,
    *,
    weights: Real[ArrayLike, "*b"] | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    axis_name: AxisName | None = None,
) -> Any:
    """The cross-entropy of softmax(logits) to the histogram of each target, in nats.

    loss(t) = -sum_i p_i(t) * log softmax(logits)_i, with p(t) the histogram `projection.encode(t)`.

    The targets get no gradient. The loss is float32, or float64 if the logits are.

    Args:
      logits: at least `projection.num_bins` per row; further columns are padding, which is ignored.
      targets: scalars in the units of the projection, which clips them to its range.
      projection: `Gaussian`, `TwoHot` or `OneHot`; irregular projections need implementation="reference".
      weights: a factor for each loss.
      return_lse: whether to return the log-sum-exp of each row as a second result; it is differentiable and unweighted.
      implementation: "reference", "xla", "cpu", "mosaic_tpu", "mosaic_gpu", or None to choose by device and size.
      axis_name: inside `jax.shard_map`, the mesh axis (or axes) over which the bins are sharded. `logits` are then
        this device's equal share of the columns, in the order of the axis. Every device returns the results of whole
        rows.

    Raises:
      TypeError: the logits are not floating point, or the targets or weights are not real.
      ValueError: shapes do not match, a row has fewer logits than bins, or the implementation is unknown or cannot
        compute these arguments.

    Source: the loss is that of Farebrother et al. 2024, equation 3.1.
    """
    logits, labels = jnp.asarray(logits), lax.stop_gradient(as_real(targets, "targets"))
    check_floating(logits, "logits")
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(f"targets of shape {labels.shape} do not match logits of shape {logits.shape}")
    columns = logits.shape[-1]
    if axis_name is not None:
        columns *= lax.axis_size(axis_name)
    if columns < projection.num_bins:
        raise ValueError(f"logits of shape {logits.shape} have fewer columns than {projection}")
    flat, shape = logits.reshape(-1, logits.shape[-1]), labels.shape
    name = dispatch.choose(implementation, flat.shape, flat.dtype, projection, sharded=axis_name is not None)
    labels = labels.reshape(-1)
    if name == "reference":
        loss, lse = reference.forward(flat, labels, projection)
    else:
        loss, lse = _fused(flat, labels, projection, name, axis_name)
    return finish(loss, lse, shape, weights, return_lse, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _fused(
    logits: Array, targets: Array, projection: Projection, name: str, axis_name: AxisName | None
) -> tuple[Array, Array]:
    loss, lse = dispatch.backend(name).forward(logits, targets, projection, **sharding(axis_name))
    return poison(loss, targets), lse


def _forward(
    logits: Array, targets: Array, projection: Projection, name: str, axis_name: AxisName | None
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    loss, lse = _fused(logits, targets, projection, name, axis_name)
    return (loss, lse), (logits, targets, lse)


def _backward(
    projection: Projection,
    name: str,
    axis_name: AxisName | None,
    saved: tuple[Array, Array, Array],
    cotangents: tuple[Array, Array],
) -> tuple[Array, None]:
    d_loss, d_lse = cotangents
    d_loss = poison(d_loss, saved[1])
    d_logits = dispatch.backend(name).backward(*saved, d_loss, d_lse, projection, **sharding(axis_name))
    return d_logits, None


_fused.defvjp(_forward, _backward)


def finish(
    loss: Float[Array, " b"],
    lse: Float[Array, " b"],
    shape: tuple[int, ...],
    weights: Real[ArrayLike, "..."] | None,
    return_lse: bool,
    axis_name: AxisName | None,
) -> Any:
    """The results of an operation from the loss and lse of flat rows: reshaped to `shape`, the loss times `weights`."""
    if axis_name is not None:
        loss, lse = _over_devices(loss, lse, axis_name)
    loss, lse = loss.reshape(shape), lse.reshape(shape)
    if weights is not None:
        factors = as_real(weights, "weights")
        if factors.shape != shape:
            raise ValueError(f"weights of shape {factors.shape} do not match targets of shape {shape}")
        loss = loss * factors.astype(loss.dtype)
    return (loss, lse) if return_lse else loss


def poison(x: Float[Array, " b"], targets: Float[Array, " b"]) -> Float[Array, " b"]:
    """`x`, with NaN in the rows whose target is NaN."""
    return jnp.where(jnp.isnan(targets), jnp.nan, x)


def sharding(axis_name: AxisName | None) -> dict[str, AxisName]:
    """The keyword argument `axis_name`, only if it is given, because some backends do not take it."""
    return {} if axis_name is None else {"axis_name": axis_name}


def _over_devices(
    loss: Float[Array, " b"], lse: Float[Array, " b"], axis_name: AxisName
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and lse of whole rows, combined from those of each device's columns."""
    empty = lse == -jnp.inf  # all columns of this device are padding
    score = lax.psum(jnp.where(empty, 0, lse - loss), axis_name)
    top = lax.pmax(lax.stop_gradient(lse), axis_name)
    total = lax.psum(jnp.where(empty, 0, jnp.exp(lse - top)), axis_name)
    return top + jnp.log(total) - score, top + jnp.log(total)
