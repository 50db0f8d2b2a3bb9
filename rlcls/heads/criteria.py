"""Losses between a predicted and a target histogram: the cross-entropy, and alternatives to it.

Each function takes logits and target probabilities, both [*b, k]. A divergence is the loss minus its minimum over
predictions, so it is 0 exactly when prediction and target agree. Every loss here except the cross-entropy has a minimum
of 0, so it is a divergence.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlcls.kernels.histogram.reference import cross_entropy as cross_entropy


def kullback_leibler(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """sum(probs * (log probs - log_softmax(logits))), the cross-entropy minus the entropy of the target, in nats."""
    empty = probs == 0
    log_ratio = jnp.log(jnp.where(empty, 1, probs)) - jax.nn.log_softmax(logits)
    return _not_negative(jnp.where(empty, 0, probs * log_ratio).sum(-1))


def generalised(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"], q: float) -> Float[Array, "*b"]:
    """(1 - sum(probs**(1 - q) * predicted**q)) / q, with predicted = softmax(logits).

    It is at most 1 / q, and tends to the Kullback-Leibler divergence as q -> 0. For a one-hot target it is the
    generalised cross-entropy (1 - predicted**q) / q. The exponent 1 - q of the target puts the minimum at the target.
    Without that exponent the minimum would be a sharpened target with another mean.

    The gradient of a bounded loss vanishes where a prediction is certain and wrong: it falls as exp(-q * d), where d is
    the margin of the wrong bin's logit. Bootstrapped targets on one or two bins can therefore stop learning at a high
    learning rate or a high q. HL-Gauss targets are safer, because successive targets overlap.

    Source: Zhang & Sabuncu 2018, equation 6, a comp-sum loss (Mao et al. 2023); the exponent of the target comes from
    the alpha-divergence (Amari 2009).
    """
    empty = probs == 0
    overlap = jnp.where(empty, 1, probs) ** (1 - q) * jnp.exp(q * jax.nn.log_softmax(logits))
    return _not_negative((1 - jnp.where(empty, 0, overlap).sum(-1)) / q)


def ordinal(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """sum_i (sum_{j <= i} (softmax(logits)_j - probs_j))**2: a miss costs more the further it is from the target.

    The loss is at most k - 1. Where a prediction is certain and wrong, its gradient falls as exp(-d), where d is the
    margin of the wrong bin's logit. This holds for every shape of the target.

    Source: Hou et al. 2016, equation 5 (squared earth mover's distance).
    """
    return jnp.square(jnp.cumsum(jax.nn.softmax(logits) - probs, axis=-1)).sum(-1)


def _not_negative(divergence: Float[Array, "*b"]) -> Float[Array, "*b"]:
    # Rounding must not make a priority negative. jnp.maximum could lose a NaN.
    return jnp.where(divergence < 0, 0, divergence)
