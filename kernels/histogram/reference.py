"""The definition: the histogram, and the cross-entropy of the softmax to it. JAX differentiates it by itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def forward(
    logits: Float[Array, "b kp"], targets: Float[Array, " b"], projection: Any
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row."""
    logits = logits[:, : projection.num_bins].astype(jnp.promote_types(logits.dtype, jnp.float32))
    probs = projection.encode(targets).astype(logits.dtype)
    lse = jax.nn.logsumexp(logits, axis=-1)
    # A bin that may not be predicted (logit -inf) costs nothing where the target has no mass.
    loss = -jnp.where(probs == 0, 0, probs * jax.nn.log_softmax(logits)).sum(-1)
    return loss, lse
