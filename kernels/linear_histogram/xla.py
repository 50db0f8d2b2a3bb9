"""Plain XLA: a loop over chunks of the bins, whose logits are computed forward and once more backward.

Source: computing a cross-entropy by blocks of a last layer's logits is Cut Cross-Entropy (Wijmans et al. 2024),
there for integer labels.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ..histogram.band import AxisName, place

CHUNK = 8192  # bins at a time: what is temporary is [B, CHUNK]


def unsupported(batch: int, width: int, padded_bins: int, dtype: Any, projection: Any) -> str | None:
    """None: it serves everything."""
    return None


def forward(
    features: Float[Array, "b d"],
    kernel: Float[Array, "d kp"],
    bias: Float[Array, " kp"] | None,
    targets: Float[Array, " b"],
    projection: Any,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row; with `axis_name`, of this device's columns alone."""
    chunks = _Chunks(features, kernel, bias, targets, projection, axis_name)
    zeros = jnp.zeros_like(features[:, 0], dtype=chunks.dtype)

    def step(number: Any, carry: Any) -> Any:
        top, total, score = carry
        logits, mass = chunks.logits(number), chunks.mass(number)
        new_top = jnp.maximum(top, logits.max(-1))
        # A row without a finite logit so far: -inf less -inf would be NaN.
        base = jnp.where(jnp.isfinite(new_top), new_top, 0)
        total = total * jnp.exp(top - base) + jnp.exp(logits - base[:, None]).sum(-1)
        return new_top, total, score + jnp.where(mass == 0, 0, mass * logits).sum(-1)

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
    projection: Any,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, "b d"], Float[Array, "d kp"], Float[Array, " kp"] | None]:
    """The gradients of features, kernel and bias, in their dtypes; with `axis_name`, by this device's columns."""
    chunks = _Chunks(features, kernel, bias, targets, projection, axis_name)
    d_both = d_loss + d_lse

    def step(number: Any, carry: Any) -> Any:
        d_features, d_kernel, d_bias = carry
        logits, mass = chunks.logits(number), chunks.mass(number)
        d_logits = d_both[:, None] * jnp.exp(logits - lse[:, None]) - d_loss[:, None] * mass
        # Not -inf alone, which exp makes 0: a NaN row is NaN times 0 in the columns that are none of this chunk.
        d_logits = jnp.where(chunks.own(number), d_logits, 0)
        # The products are of the operands' own precision, as the layer's own would be; their sums are not.
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
    """The layer's columns, by chunks of one size; the last begins early, and owns only what is left."""

    def __init__(
        self,
        features: Any,
        kernel: Any,
        bias: Any,
        targets: Any,
        projection: Any,
        axis_name: AxisName | None,
    ):
        self.dtype = jnp.promote_types(jnp.promote_types(features.dtype, kernel.dtype), jnp.float32)
        self.features, self.kernel, self.bias, self.projection = features, kernel, bias, projection
        self.bins, self.fractions, self.scale = (x[:, None] for x in place(projection, targets, self.dtype))
        self.columns = kernel.shape[1]
        self.padded = axis_name is not None or self.columns > projection.num_bins
        self.size = min(CHUNK, self.columns)
        self.offset: Any = 0 if axis_name is None else lax.axis_index(axis_name) * self.columns
        # Chunks of padding alone are left out, where all devices have them.
        self.count = -(-min(projection.num_bins, self.columns) // self.size)

    def own(self, number: Any) -> Any:
        """Which columns of the slice are this chunk's, and bins."""
        columns = self._columns(number)
        return (columns >= number * self.size) & (columns + self.offset < self.projection.num_bins)

    def logits(self, number: Any) -> Any:
        """[B, size], -inf in the columns that are not this chunk's own."""
        weights = self.slice(self.kernel, number)
        logits = jnp.dot(self.features, weights, preferred_element_type=self.dtype)
        if self.bias is not None:
            logits = logits + self.slice(self.bias, number).astype(self.dtype)
        return jnp.where(self.own(number), logits, -jnp.inf)

    def weights(self, number: Any) -> Any:
        """[D, size] of the kernel, 0 in padding: a gradient of 0 times a NaN there would be one."""
        weights = self.slice(self.kernel, number)
        return jnp.where(self.own(number), weights, 0) if self.padded else weights

    def mass(self, number: Any) -> Any:
        """[B, size], 0 in the columns that are not this chunk's own."""
        columns = self._columns(number) + self.offset
        mass = self.projection.mass(columns, self.bins, self.fractions, self.scale)
        return jnp.where(self.own(number), mass, 0)

    def slice(self, x: Any, number: Any) -> Any:
        return lax.dynamic_slice_in_dim(x, self._start(number), self.size, axis=-1)

    def add(self, x: Any, number: Any, change: Any) -> Any:
        changed = (self.slice(x, number) + change).astype(x.dtype)
        return lax.dynamic_update_slice_in_dim(x, changed, self._start(number), axis=-1)

    def _columns(self, number: Any) -> Any:
        """The numbers of the slice's columns, [1, size], on this device."""
        return self._start(number) + np.arange(self.size, dtype=np.int32)[None]

    def _start(self, number: Any) -> Any:
        return jnp.minimum(number * self.size, self.columns - self.size)
