"""The definition: the projected distribution, and the cross-entropy to it. JAX differentiates it by itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def forward(
    logits: Float[Array, "b kp"],
    next_probs: Float[Array, "b k"],
    rewards: Float[Array, " b"],
    discounts: Float[Array, " b"],
    projection: Any,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row."""
    logits = logits[:, : projection.num_bins].astype(jnp.promote_types(logits.dtype, jnp.float32))
    probs = projection.project(next_probs, moved_atoms(rewards, discounts, projection)).astype(logits.dtype)
    loss = -jnp.where(probs == 0, 0, probs * jax.nn.log_softmax(logits)).sum(-1)
    return loss, jax.nn.logsumexp(logits, axis=-1)


def moved_atoms(
    rewards: Float[Array, " b"], discounts: Float[Array, " b"], projection: Any
) -> Float[Array, "b k"]:
    """Where each atom of the next state's distribution goes."""
    atoms = np.linspace(projection.first_center, projection.last_center, projection.num_bins)
    return rewards[:, None] + discounts[:, None] * atoms.astype(rewards.dtype)
