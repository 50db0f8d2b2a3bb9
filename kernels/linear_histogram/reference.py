"""The definition: the logits, and their cross-entropy to the histogram. JAX differentiates it by itself."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..histogram import reference


def forward(
    features: Float[Array, "b d"],
    kernel: Float[Array, "d kp"],
    bias: Float[Array, " kp"] | None,
    targets: Float[Array, " b"],
    projection: Any,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row."""
    dtype = jnp.promote_types(jnp.promote_types(features.dtype, kernel.dtype), jnp.float32)
    logits = jnp.dot(features, kernel, preferred_element_type=dtype)
    if bias is not None:
        logits = logits + bias.astype(dtype)
    return reference.forward(logits, targets, projection)
