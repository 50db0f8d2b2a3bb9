"""How far a predicted histogram is from a target one: the cross-entropy, and two others to hold against it.

Each takes logits and target probabilities, [*b, k] both, and has a `loss`, to be minimised, and a
`divergence`: the loss less the least it can be, which it is when the prediction is the target.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cross_entropy(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """-sum(probs * log_softmax(logits)), in nats."""
    # A bin that may not be predicted (logit -inf) costs nothing where the target has no mass.
    return -jnp.where(probs == 0, 0, probs * jax.nn.log_softmax(logits)).sum(-1)


def kullback_leibler(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """The cross-entropy less the entropy of the target, in nats."""
    empty = probs == 0
    log_ratio = jnp.log(jnp.where(empty, 1, probs)) - jax.nn.log_softmax(logits)
    return _not_negative(jnp.where(empty, 0, probs * log_ratio).sum(-1))


def generalised(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"], q: float) -> Float[Array, "*b"]:
    """(1 - sum(probs**(1 - q) * predicted**q)) / q: the cross-entropy's excess as q -> 0, bounded above it.

    For a one-hot target it is (1 - predicted**q) / q, the generalised cross-entropy. A target that is spread
    is raised to 1 - q, or the least loss would be at a sharpened target, whose mean is another.

    Being bounded, it stops teaching where a prediction is certain and wrong: its slope falls as exp(-q * d)
    with the margin d of the wrong bin's logit. On a target of one or two bins that moves, bootstrapped
    learning can stick at high learning rates or q; a spread one (HL-Gauss) overlaps, and is safer.

    Source: Zhang & Sabuncu 2018, equation 6, a comp-sum loss (Mao et al. 2023); the exponent of the target
    is that of the alpha-divergence (Amari 2009).
    """
    empty = probs == 0
    overlap = jnp.where(empty, 1, probs) ** (1 - q) * jnp.exp(q * jax.nn.log_softmax(logits))
    return _not_negative((1 - jnp.where(empty, 0, overlap).sum(-1)) / q)


def ordinal(logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """The squared distance of the cumulative distributions, summed over bins: near misses cost less.

    It is bounded too, by k - 1; where a prediction is certain and wrong its slope falls as exp(-d) with the
    margin d of the wrong bin's logit, whatever the target's shape.

    Source: Hou et al. 2016, equation 5 (squared earth mover's distance).
    """
    return jnp.square(jnp.cumsum(jax.nn.softmax(logits) - probs, axis=-1)).sum(-1)


def _not_negative(divergence: Float[Array, "*b"]) -> Float[Array, "*b"]:
    # Rounding must not make a priority negative; a maximum could lose a NaN.
    return jnp.where(divergence < 0, 0, divergence)
