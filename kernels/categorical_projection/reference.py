"""The definition: the projected distribution and the cross-entropy to it, differentiated by JAX."""

import jax
import numpy as np
from jaxtyping import Array, Float

from ..arrays import at_least_float32
from ..histogram.projection import TwoHot
from ..histogram.reference import cross_entropy


def forward(
    logits: Float[Array, "b kp"],
    next_probs: Float[Array, "b k"],
    rewards: Float[Array, " b"],
    discounts: Float[Array, " b"],
    projection: TwoHot,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row."""
    logits = at_least_float32(logits[:, : projection.num_bins])
    probs = projection.project(next_probs, moved_atoms(rewards, discounts, projection)).astype(logits.dtype)
    return cross_entropy(logits, probs), jax.nn.logsumexp(logits, axis=-1)


def moved_atoms(
    rewards: Float[Array, " b"], discounts: Float[Array, " b"], projection: TwoHot
) -> Float[Array, "b k"]:
    """r + discount * atom, for each atom of the distribution at the next state."""
    atoms = np.linspace(projection.first_center, projection.last_center, projection.num_bins)
    return rewards[:, None] + discounts[:, None] * atoms.astype(rewards.dtype)
