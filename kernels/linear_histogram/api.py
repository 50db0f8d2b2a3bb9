"""The histogram cross-entropy of a linear layer, without all of its logits in memory.

A backend (`xla`, `mosaic_tpu`) has the functions that `rlcls.kernels.histogram.api` describes, with features [B, D],
kernel [D, Kp] and bias [Kp] or None in place of the logits:

    forward(features, kernel, bias, targets, projection) -> (loss [B], lse [B])
    backward(features, kernel, bias, targets, lse, d_loss, d_lse, projection) -> (d_features, d_kernel, d_bias)
    unsupported(batch, width, padded_bins, dtype, projection) -> None, or one line that says why it cannot compute these

Each gradient has the dtype of its argument; d_bias is None if bias is. The products have the precision of their
operands, as set by `jax.default_matmul_precision`, and are summed in at least float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from ..arrays import AxisName, as_real, check_floating
from ..histogram import dispatch
from ..histogram.api import finish, poison, sharding
from ..histogram.projection import Projection
from . import reference


def linear_histogram_cross_entropy(
    features: Float[ArrayLike, "*b d"],
    kernel: Float[ArrayLike, "d k"],
    bias: Float[ArrayLike, " k"] | None,
    targets: Real[ArrayLike, "*b"],
    projection: Projection,
    *,
    weights: Real[ArrayLike, "*b"] | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    axis_name: AxisName | None = None,
) -> Any:
    """`histogram_cross_entropy(features @ kernel + bias, targets, projection)`, for a chunk of the bins at a time.

    The backward pass computes the logits again, so they need not be stored. Temporaries have the size of features, of
    kernel, and with "xla" of 8192 logits per row. The targets get no gradient.

    Args:
      features: the input of the last layer.
      kernel: its weights; columns from `projection.num_bins` on are padding, whose gradient is 0.
      bias: its biases, or None.
      targets: scalars in the units of the projection.
      projection: `Gaussian`, `TwoHot` or `OneHot`; irregular projections need implementation="reference".
      weights: a factor for each loss.
      return_lse: whether to return the log-sum-exp of each row as a second result.
      implementation: "reference", "xla", "mosaic_tpu", or None to choose by device and size.
      axis_name: inside `jax.shard_map`, the mesh axis (or axes) over which the bins are sharded. `kernel` and `bias`
        are then this device's equal share of the columns, in the order of the axis, and `features` are this device's
        rows. Every device returns the results of whole rows.

    Raises:
      TypeError: features, kernel or bias are not floating point, or targets or weights are not real.
      ValueError: shapes do not match, or the implementation is unknown or cannot compute these arguments.

    Source: Cut Cross-Entropy (Wijmans et al. 2024), applied to histograms.
    """
    features, kernel = jnp.asarray(features), jnp.asarray(kernel)
    bias = None if bias is None else jnp.asarray(bias)
    labels = lax.stop_gradient(as_real(targets, "targets"))
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    _check(features, kernel, bias, labels, projection, devices)
    flat, labels, shape = features.reshape(-1, features.shape[-1]), labels.reshape(-1), labels.shape
    sizes, dtype = (*flat.shape, kernel.shape[1]), jnp.promote_types(features.dtype, kernel.dtype)
    sharded = axis_name is not None
    name = dispatch.choose(
        implementation, sizes, dtype, projection, operation="linear_histogram", sharded=sharded
    )
    if name == "reference":
        loss, lse = reference.forward(flat, kernel, bias, labels, projection)
    else:
        loss, lse = _fused(*_varying_alike(flat, kernel, bias, labels), projection, name, axis_name)
    return finish(loss, lse, shape, weights, return_lse, axis_name)


def _varying_alike(*arrays: Array | None) -> Any:
    """The arrays, cast inside shard_map to vary over every mesh axis that one of them varies over.

    JAX then sums the gradient of a replicated kernel over the devices. Without the cast, the gradient from one device's
    rows would have another type than the kernel.
    """
    varying = jax.tree.map(lambda x: jax.typeof(x).manual_axis_type.varying, arrays)
    every = frozenset().union(*jax.tree.leaves(varying))

    def cast(x: Array, axes: frozenset) -> Array:
        missing = tuple(sorted(every - axes, key=str))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, arrays, varying)


def _check(
    features: Array, kernel: Array, bias: Array | None, targets: Array, projection: Projection, devices: int
) -> None:
    for argument, x in (("features", features), ("kernel", kernel), ("bias", bias)):
        if x is not None:
            check_floating(x, argument)
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
    features: Array,
    kernel: Array,
    bias: Array | None,
    targets: Array,
    projection: Projection,
    name: str,
    axis_name: AxisName | None,
) -> tuple[Array, Array]:
    backend = dispatch.backend(name, "linear_histogram")
    loss, lse = backend.forward(features, kernel, bias, targets, projection, **sharding(axis_name))
    return poison(loss, targets), lse


def _forward(
    features: Array,
    kernel: Array,
    bias: Array | None,
    targets: Array,
    projection: Projection,
    name: str,
    axis_name: AxisName | None,
) -> tuple[tuple[Array, Array], tuple[Array | None, ...]]:
    loss, lse = _fused(features, kernel, bias, targets, projection, name, axis_name)
    return (loss, lse), (features, kernel, bias, targets, lse)


def _backward(
    projection: Projection,
    name: str,
    axis_name: AxisName | None,
    saved: tuple[Any, ...],
    cotangents: tuple[Array, Array],
) -> tuple[Array | None, ...]:
    d_loss, d_lse = cotangents
    d_loss = poison(d_loss, saved[3])
    backend = dispatch.backend(name, "linear_histogram")
    return *backend.backward(*saved, d_loss, d_lse, projection, **sharding(axis_name)), None


_fused.defvjp(_forward, _backward)
