"""The definition: the histogram and the cross-entropy of the softmax to it, differentiated by JAX."""

import jax
from jaxtyping import Array, Float

from ..arrays import at_least_float32, weigh
from .projection import Projection


def forward(
    logits: Float[Array, "b kp"], targets: Float[Array, " b"], projection: Projection
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row."""
    logits = at_least_float32(logits[:, : projection.num_bins])
    probs = projection.encode(targets).astype(logits.dtype)
    return cross_entropy(logits, probs), jax.nn.logsumexp(logits, axis=-1)


def cross_entropy(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """-sum_i probs_i * log softmax(logits)_i, in nats."""
    return -weigh(probs, jax.nn.log_softmax(logits)).sum(-1)
