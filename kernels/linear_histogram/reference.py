"""The definition: the logits and their cross-entropy to the histogram, differentiated by JAX."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arrays import sum_dtype
from ..histogram import reference
from ..histogram.projection import Projection


def forward(
    features: Float[Array, "b d"],
    kernel: Float[Array, "d kp"],
    bias: Float[Array, " kp"] | None,
    targets: Float[Array, " b"],
    projection: Projection,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row."""
    dtype = sum_dtype(features, kernel)
    logits = jnp.dot(features, kernel, preferred_element_type=dtype)
    if bias is not None:
        logits = logits + bias.astype(dtype)
    return reference.forward(logits, targets, projection)
