"""Plain XLA: a loop over chunks of the bins. The logits of a chunk are computed once forward and once backward.

Source: Cut Cross-Entropy (Wijmans et al. 2024), which computes the cross-entropy to integer labels in blocks of the
last layer's logits.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..arrays import AxisName, sum_dtype, weigh
from ..histogram.projection import Projection, place

CHUNK = 8192  # bins in a chunk; temporaries are [B, CHUNK]


def forward(
    features: Float[Array, "b d"],
    kernel: Float[Array, "d kp"],
    bias: Float[Array, " kp"] | None,
    targets: Float[Array, " b"],
    projection: Projection,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row; with `axis_name`, over this device's columns only."""
    chunks = _Chunks(features, kernel, bias, targets, projection, axis_name)
    zeros = jnp.zeros_like(features[:, 0], dtype=chunks.dtype)

    def step(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, score = carry
        logits, mass = chunks.logits(number), chunks.mass(number)
        new_top = jnp.maximum(top, logits.max(-1))
        # Without a finite logit so far, -inf minus -inf would be NaN.
        base = jnp.where(jnp.isfinite(new_top), new_top, 0)
        total = total * jnp.exp(top - base) + jnp.exp(logits - base[:, None]).sum(-1)
        return new_top, total, score + weigh(mass, logits).sum(-1)

    top, total, score = lax.fori_loop(0, chunks.count, step, (zeros - jnp.inf, zeros, zeros))
    lse = jnp.where(jnp.isfinite(top), top, 0) + jnp.log(total)
    return lse - score, lse


def backward(
    features: Float[Array, "b d"],
    kernel: Float[Array, "d kp"],
    bias: Float[Array, " kp"] | None,
    targets: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Projection,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, "b d"], Float[Array, "d kp"], Float[Array, " kp"] | None]:
    """The gradients of features, kernel and bias, in their dtypes; with `axis_name`, of this device's columns."""
    chunks = _Chunks(features, kernel, bias, targets, projection, axis_name)
    d_both = d_loss + d_lse

    def step(number: Array, carry: Any) -> Any:
        d_features, d_kernel, d_bias = carry
        logits, mass = chunks.logits(number), chunks.mass(number)
        d_logits = d_both[:, None] * jnp.exp(logits - lse[:, None]) - d_loss[:, None] * mass
        # Columns of other chunks have exp(-inf) = 0, but in a row of NaN 0 times NaN would make them NaN.
        d_logits = jnp.where(chunks.own(number), d_logits, 0)
        # Products have the precision of their operands, like the layer's own product. Sums have at least float32.
        narrow = d_logits.astype(kernel.dtype)
        weights = chunks.weights(number)
        d_features += jnp.dot(narrow, weights.T, preferred_element_type=chunks.dtype)
        d_weights = jnp.dot(features.T, narrow, preferred_element_type=chunks.dtype)
        d_kernel = chunks.add(d_kernel, number, d_weights)
        if bias is not None:
            d_bias = chunks.add(d_bias, number, d_logits.sum(0))
        return d_features, d_kernel, d_bias

    start = (
        jnp.zeros_like(features, dtype=chunks.dtype),
        jnp.zeros_like(kernel),
        None if bias is None else jnp.zeros_like(bias),
    )
    d_features, d_kernel, d_bias = lax.fori_loop(0, chunks.count, step, start)
    return d_features.astype(features.dtype), d_kernel, d_bias


class _Chunks:
    """The layer's columns in slices of one size. The last one overlaps the one before, and owns only the rest."""

    def __init__(
        self,
        features: Array,
        kernel: Array,
        bias: Array | None,
        targets: Array,
        projection: Projection,
        axis_name: AxisName | None,
    ) -> None:
        self.dtype = sum_dtype(features, kernel)
        self.features, self.kernel, self.bias, self.projection = features, kernel, bias, projection
        self.bins, self.fractions, self.scale = (x[:, None] for x in place(projection, targets, self.dtype))
        self.columns = kernel.shape[1]
        self.padded = axis_name is not None or self.columns > projection.num_bins
        self.size = min(CHUNK, self.columns)
        self.offset: Any = 0 if axis_name is None else lax.axis_index(axis_name) * self.columns
        # The loop skips chunks that contain only padding on every device.
        self.count = -(-min(projection.num_bins, self.columns) // self.size)

    def own(self, number: Array) -> Bool[Array, "1 c"]:
        """Which columns of the slice belong to this chunk and are bins."""
        columns = self._columns(number)
        return (columns >= number * self.size) & (columns + self.offset < self.projection.num_bins)

    def logits(self, number: Array) -> Float[Array, "b c"]:
        """The logits of the slice, -inf in the columns that this chunk does not own."""
        weights = self.slice(self.kernel, number)
        logits = jnp.dot(self.features, weights, preferred_element_type=self.dtype)
        if self.bias is not None:
            logits = logits + self.slice(self.bias, number).astype(self.dtype)
        return jnp.where(self.own(number), logits, -jnp.inf)

    def weights(self, number: Array) -> Float[Array, "d c"]:
        """The kernel's columns, 0 in padding, where a NaN times a gradient of 0 would be NaN."""
        weights = self.slice(self.kernel, number)
        return jnp.where(self.own(number), weights, 0) if self.padded else weights

    def mass(self, number: Array) -> Float[Array, "b c"]:
        """The mass of the slice's bins, 0 in the columns that this chunk does not own."""
        columns = self._columns(number) + self.offset
        mass = self.projection.mass(columns, self.bins, self.fractions, self.scale)
        return jnp.where(self.own(number), mass, 0)

    def slice(self, x: Array, number: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, self._start(number), self.size, axis=-1)

    def add(self, x: Array, number: Array, change: Array) -> Array:
        changed = (self.slice(x, number) + change).astype(x.dtype)
        return lax.dynamic_update_slice_in_dim(x, changed, self._start(number), axis=-1)

    def _columns(self, number: Array) -> Int[Array, "1 c"]:
        """The numbers of the slice's columns on this device."""
        return self._start(number) + np.arange(self.size, dtype=np.int32)[None]

    def _start(self, number: Array) -> Int[Array, ""]:
        return jnp.minimum(number * self.size, self.columns - self.size)
