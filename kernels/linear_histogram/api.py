"""The histogram cross-entropy of a linear layer's logits, which are never in memory as a whole.

A backend (`xla`, `mosaic_tpu`) has the functions of `rlcls.kernels.histogram.api`, with features [B, D], kernel
[D, Kp] and bias [Kp] or None in the place of the logits:

    forward(features, kernel, bias, targets, projection) -> (loss [B], lse [B])
    backward(features, kernel, bias, targets, lse, d_loss, d_lse, projection) -> (d_features, d_kernel, d_bias)
    unsupported(batch, width, padded_bins, dtype, projection) -> None, or one line: why it cannot serve these

The gradients have the dtypes of what they are gradients of; d_bias is None where bias is. The products are in
the operands' own precision, as `jax.default_matmul_precision` says, and their sums at least in float32.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from ..histogram import dispatch
from ..histogram.api import as_real, over_devices, poison, sharding
from ..histogram.band import AxisName
from . import reference

IMPLEMENTATIONS = ("reference", "xla", "mosaic_tpu")


def linear_histogram_cross_entropy(
    features: Float[ArrayLike, "*b d"],
    kernel: Float[ArrayLike, "d k"],
    bias: Float[ArrayLike, " k"] | None,
    targets: Real[ArrayLike, "*b"],
    projection: Any,
    *,
    weights: Real[ArrayLike, "*b"] | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    axis_name: AxisName | None = None,
) -> Any:
    """`histogram_cross_entropy(features @ kernel + bias, targets, projection)`, by chunks of the bins.

    It trades one more product of features and kernel for the memory of the logits: temporaries are of the size
    of features, of kernel, and (of "xla") of a chunk of 8192 logits a row. No gradient goes to the targets.

    Args:
      features: the input of the last layer.
      kernel: its weights; columns from `projection.num_bins` on are padding, without a gradient.
      bias: its biases, or None.
      targets: scalars in the units of the projection.
      projection: `Gaussian`, `TwoHot` or `OneHot`; the irregular ones go with implementation="reference".
      weights: a factor of each loss.
      return_lse: also gives the log-sum-exp of each row, as a second result.
      implementation: "reference", "xla", "mosaic_tpu", or None for the fastest here that keeps to the memory above.
      axis_name: inside `jax.shard_map`, the mesh axis (or axes) that the bins are sharded over: `kernel` and `bias` are
        then this device's equal share of the columns, in the order of the axis, `features` those of the rows at
        hand, and the results are whole on every device.

    Raises:
      TypeError: features, kernel or bias are not floating point, or targets or weights not real.
      ValueError: shapes do not match, or the implementation is unknown or cannot serve.

    Source: Cut Cross-Entropy (Wijmans et al. 2024), carried to histograms.
    """
    features, kernel, targets = jnp.asarray(features), jnp.asarray(kernel), as_real("targets", targets)
    bias = None if bias is None else jnp.asarray(bias)
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    _check(features, kernel, bias, targets, projection, devices)
    if weights is not None:
        weights = as_real("weights", weights)
        if weights.shape != targets.shape:
            raise ValueError(f"weights of shape {weights.shape} do not match targets of {targets.shape}")
    flat, labels = features.reshape(-1, features.shape[-1]), lax.stop_gradient(targets.reshape(-1))
    name = _choose(implementation, flat, kernel, projection, sharded=axis_name is not None)
    if name == "reference":
        loss, lse = reference.forward(flat, kernel, bias, labels, projection)
    else:
        loss, lse = _fused(*_varying_alike(flat, kernel, bias, labels), projection, name, axis_name)
    if axis_name is not None:
        loss, lse = over_devices(loss, lse, axis_name)
    loss, lse = loss.reshape(targets.shape), lse.reshape(targets.shape)
    if weights is not None:
        loss = loss * weights.astype(loss.dtype)
    return (loss, lse) if return_lse else loss


def _choose(implementation: str | None, features: Any, kernel: Any, projection: Any, *, sharded: bool) -> str:
    dispatch.check_known(implementation, IMPLEMENTATIONS)
    dispatch.check_sharded(projection, sharded)
    if not dispatch.is_regular(projection):
        if implementation not in (None, "reference"):
            kind = type(projection).__name__
            raise ValueError(f"implementation {implementation!r} cannot serve: {kind} is for 'reference'")
        return "reference"
    dtype = jnp.promote_types(features.dtype, kernel.dtype)

    def reason(name: str) -> str | None:
        if sharded and name != "xla":
            return dispatch.SHARDED
        if name == "reference":
            return None
        return _backend(name).unsupported(*features.shape, kernel.shape[1], dtype, projection)

    if implementation is None:
        size = features.shape[0] * kernel.shape[1] * dtype.itemsize
        return dispatch.first(dispatch.LINEAR_THRESHOLDS, projection.num_bins, size, reason) or "xla"
    if why := reason(implementation):
        raise ValueError(f"implementation {implementation!r} cannot serve: {why}")
    return implementation


def _varying_alike(*arrays: Any) -> Any:
    """The arrays, in a shard_map all varying over the mesh axes that any varies over.

    Or the gradient of a kernel that every device has, summed over the rows of one device, would be of another type
    than the kernel. So JAX sums it over the devices, by itself.
    """
    varying = jax.tree.map(lambda x: jax.typeof(x).manual_axis_type.varying, arrays)
    every = frozenset().union(*jax.tree.leaves(varying))

    def cast(x: Any, axes: Any) -> Any:
        missing = tuple(sorted(every - axes, key=str))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, arrays, varying)


def _backend(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}")


def _check(features: Any, kernel: Any, bias: Any, targets: Any, projection: Any, devices: int) -> None:
    for argument, x in (("features", features), ("kernel", kernel), ("bias", bias)):
        if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{argument} must be floating point, not {x.dtype}")
    if kernel.ndim != 2 or features.ndim == 0 or features.shape[-1] != kernel.shape[0]:
        raise ValueError(f"kernel of shape {kernel.shape} does not fit features of shape {features.shape}")
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias of shape {bias.shape} does not fit a kernel of shape {kernel.shape}")
    if targets.shape != features.shape[:-1]:
        raise ValueError(f"targets of shape {targets.shape} do not match features of shape {features.shape}")
    if kernel.shape[1] * devices < projection.num_bins:
        raise ValueError(f"a kernel of shape {kernel.shape} has fewer columns than {projection}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _fused(
    features: Any,
    kernel: Any,
    bias: Any,
    targets: Any,
    projection: Any,
    name: str,
    axis_name: AxisName | None,
) -> Any:
    loss, lse = _backend(name).forward(features, kernel, bias, targets, projection, **sharding(axis_name))
    return poison(loss, targets), lse


def _forward(
    features: Any,
    kernel: Any,
    bias: Any,
    targets: Any,
    projection: Any,
    name: str,
    axis_name: AxisName | None,
) -> Any:
    loss, lse = _fused(features, kernel, bias, targets, projection, name, axis_name)
    return (loss, lse), (features, kernel, bias, targets, lse)


def _backward(projection: Any, name: str, axis_name: AxisName | None, saved: Any, cotangents: Any) -> Any:
    d_loss, d_lse = cotangents
    d_loss = poison(d_loss, saved[3])
    return *_backend(name).backward(*saved, d_loss, d_lse, projection, **sharding(axis_name)), None


_fused.defvjp(_forward, _backward)
