"""The cross-entropy of logits to histograms of scalars, without the histograms in memory.

Every backend (`xla`, `cpu`, `mosaic_tpu`, `mosaic_gpu`; a file each, imported when it is first used) has exactly
three functions. Rows are flat there: B of them, each of Kp >= projection.num_bins logits.

    forward(logits [B, Kp], targets [B], projection) -> (loss [B], lse [B])
    backward(logits, targets, lse [B], d_loss [B], d_lse [B], projection) -> d_logits [B, Kp]
    unsupported(batch, padded_bins, dtype, projection) -> None, or one line: why it cannot serve these

* logits are float32, bfloat16 or float16, or float64 where the backend allows it; targets are float32 or
  float64. loss, lse, d_loss and d_lse are float32, or float64 for float64 logits. d_logits has the dtype of
  the logits.
* Columns from projection.num_bins on are padding: whatever they hold, NaN included, has no part in loss or
  lse, and their gradient is exactly 0.
* With p the histogram, loss = lse - sum(p * logits) over the columns where p is not 0 (a logit of -inf elsewhere
  costs nothing), and d_logits = (d_loss + d_lse) * softmax - d_loss * p.
* What a backend makes of the loss and gradient of a row with a NaN target does not matter: here they are made
  NaN. Its lse is that of the logits.
* Only logits, targets and lse are kept from forward to backward; the histogram is computed again.

Here are the checks, the one custom VJP, and what is the same for all of them: leading dimensions and weights.
`reference` is the definition in plain JAX, through which JAX differentiates by itself.
"""

import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from . import dispatch, reference
from .band import AxisName


@overload
def histogram_cross_entropy(
    logits: Float[ArrayLike, "*b k"],
    targets: Real[ArrayLike, "*b"],
    projection: Any,
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
    projection: Any,
    *,
    weights: Real[ArrayLike, "*b"] | None = ...,
    return_lse: Literal[True],
    implementation: str | None = ...,
    axis_name: AxisName | None = ...,
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]: ...


def histogram_cross_entropy(
    logits: Float[ArrayLike, "*b k"],
    targets: Real[ArrayLike, "*b"],
    projection: Any,
    *,
    weights: Real[ArrayLike, "*b"] | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    axis_name: AxisName | None = None,
) -> Any:
    """The cross-entropy of softmax(logits) to the histogram of each target, in nats.

    No gradient goes to the targets. The loss is in float32, or in float64 if the logits are.

    Args:
      logits: at least `projection.num_bins` per row; what is beyond is padding, and ignored.
      targets: scalars in the units of the projection; outside its ends they count as its ends.
      projection: `Gaussian`, `TwoHot` or `OneHot`; the irregular ones go with implementation="reference".
      weights: a factor of each loss.
      return_lse: also gives the log-sum-exp of each row, differentiable too and without the weights.
      implementation: "reference", "xla", "cpu", "mosaic_tpu", "mosaic_gpu", or None for the fastest here.
      axis_name: inside `jax.shard_map`, the mesh axis (or axes) that the bins are sharded over: `logits` are then this
        device's equal share of the columns, in the order of the axis, and the results are whole on every
        device.

    Raises:
      TypeError: the logits are not floating point, or the targets or weights not real.
      ValueError: shapes do not match, there are fewer logits than bins, or the implementation is unknown or
        cannot serve (the message says why).

    Source: the loss is that of Farebrother et al. 2024, equation 3.1.
    """
    logits, targets = jnp.asarray(logits), as_real("targets", targets)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits must be floating point, not {logits.dtype}")
    if logits.ndim == 0 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets of shape {targets.shape} do not match logits of shape {logits.shape}")
    if weights is not None:
        weights = as_real("weights", weights)
        if weights.shape != targets.shape:
            raise ValueError(f"weights of shape {weights.shape} do not match targets of {targets.shape}")
    columns = logits.shape[-1]
    if axis_name is not None:
        columns *= lax.axis_size(axis_name)
    if columns < projection.num_bins:
        raise ValueError(f"logits of shape {logits.shape} have fewer columns than {projection}")
    flat = logits.reshape(-1, logits.shape[-1])
    name = dispatch.choose(implementation, flat.shape, flat.dtype, projection, sharded=axis_name is not None)
    labels = lax.stop_gradient(targets.reshape(-1))
    if name == "reference":
        loss, lse = reference.forward(flat, labels, projection)
    else:
        loss, lse = _fused(flat, labels, projection, name, axis_name)
    if axis_name is not None:
        loss, lse = over_devices(loss, lse, axis_name)
    loss, lse = loss.reshape(targets.shape), lse.reshape(targets.shape)
    if weights is not None:
        loss = loss * weights.astype(loss.dtype)
    return (loss, lse) if return_lse else loss


def as_real(argument: str, x: ArrayLike) -> Float[Array, "..."]:
    """The array in at least float32."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{argument} must be real, not {x.dtype}")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _fused(logits: Any, targets: Any, projection: Any, name: str, axis_name: AxisName | None) -> Any:
    loss, lse = dispatch.backend(name).forward(logits, targets, projection, **sharding(axis_name))
    return poison(loss, targets), lse


def _forward(logits: Any, targets: Any, projection: Any, name: str, axis_name: AxisName | None) -> Any:
    loss, lse = _fused(logits, targets, projection, name, axis_name)
    return (loss, lse), (logits, targets, lse)


def _backward(projection: Any, name: str, axis_name: AxisName | None, saved: Any, cotangents: Any) -> Any:
    d_loss, d_lse = cotangents
    d_loss = poison(d_loss, saved[1])
    d_logits = dispatch.backend(name).backward(*saved, d_loss, d_lse, projection, **sharding(axis_name))
    return d_logits, None


_fused.defvjp(_forward, _backward)


def over_devices(loss: Any, lse: Any, axis_name: AxisName) -> Any:
    """The whole rows' loss and lse, given those of each device's columns."""
    empty = lse == -jnp.inf  # a device with nothing but padding
    score = lax.psum(jnp.where(empty, 0, lse - loss), axis_name)
    top = lax.pmax(lax.stop_gradient(lse), axis_name)
    total = lax.psum(jnp.where(empty, 0, jnp.exp(lse - top)), axis_name)
    return top + jnp.log(total) - score, top + jnp.log(total)


def poison(x: Any, targets: Any) -> Any:
    """x, NaN in the rows whose target is."""
    return jnp.where(jnp.isnan(targets), jnp.nan, x)


def sharding(axis_name: AxisName | None) -> dict[str, AxisName]:
    return {} if axis_name is None else {"axis_name": axis_name}
