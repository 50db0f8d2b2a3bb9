"""Measures of predictions: explained variance, CRPS, the mass at the edges, and the loss of a constant prediction.

A cross-entropy alone does not show whether a network predicts the same distribution everywhere. Its loss is then
`marginal_cross_entropy`, which can be close to the minimum. The explained variance of such predictions is 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rlcls.kernels.arrays import as_real, clip, namespace

from ._arrays import as_outputs, as_scalars
from .categorical import CategoricalHead, HLGauss, OneHot, TwoHot

_CHUNK = 4096  # targets encoded at a time


def explained_variance(values: Real[ArrayLike, "*b"], returns: Real[ArrayLike, "*b"]) -> Float[Any, ""]:
    """1 - Var(returns - values) / Var(returns), over all axes. NumPy in, NumPy out.

    It is 1 for exact values, 0 for a constant, and negative if the errors vary more than the returns. A constant offset
    of all values does not change it. It is NaN or infinite if all returns are equal.

    Args:
      values: predictions, `head.value(outputs)`.
      returns: the observed returns, in the same units.

    Raises:
      ValueError: the shapes differ, or are empty.

    >>> explained_variance(np.array([0.0, 2.0, 2.0]), np.array([0.0, 2.0, 4.0])).round(3)
    np.float64(0.667)
    """
    xp = np if namespace(values) is np and namespace(returns) is np else jnp
    values, returns = as_real(values, "values", xp), as_real(returns, "returns", xp)
    if values.shape != returns.shape or not values.size:
        raise ValueError(
            f"values of shape {values.shape} do not match returns of shape {returns.shape}: "
            "both must have one shape, which is not empty"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - xp.var(returns - values) / xp.var(returns)


def crps(
    head: CategoricalHead, outputs: Float[ArrayLike, "*b k"], scalars: Real[ArrayLike, "*b"]
) -> Float[Array, "*b"]:
    """The continuous ranked probability score of each predicted distribution, in the units of the scalar.

    crps(x, t) = integral of (F(z) - [z >= t])**2 dz = E|Z - t| - E|Z - Z'| / 2

    where F is the distribution function of Z, which has the mass softmax(x)_i at `support.values[i]`. With all mass in
    one bin it is |error|. Its expectation is lowest if the prediction is the distribution of the scalars. Unlike a
    cross-entropy, it can compare heads with different bins. Scalars are not clipped to the support.

    Source: Gneiting & Raftery 2007, equations 20 and 21.
    """
    outputs = as_outputs(head, outputs)
    scalars = as_scalars(scalars, "scalars", outputs)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, scalars.dtype))
    scalars = lax.stop_gradient(scalars.astype(outputs.dtype))[..., None]
    probs = jax.nn.softmax(outputs)
    # The mass below and above each gap between two centers. 1 - below would lose small masses.
    below = jnp.cumsum(probs[..., :-1], axis=-1)
    above = jnp.flip(jnp.cumsum(jnp.flip(probs[..., 1:], -1), axis=-1), -1)
    centers = head.support.values.astype(outputs.dtype)
    left, right = centers[:-1], centers[1:]
    split = clip(scalars, left, right)
    inside = (jnp.square(below) * (split - left) + jnp.square(above) * (right - split)).sum(-1)
    outside = scalars - clip(scalars, centers[0], centers[-1])
    return inside + jnp.abs(outside[..., 0])


def edge_mass(head: CategoricalHead, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b 2"]:
    """The probabilities of the lowest and of the highest bin.

    Much mass at an edge where few targets lie shows that the support is too small. `head.clip_fraction` is the share of
    targets beyond the edges.
    """
    return head.probs(outputs)[..., jnp.array([0, -1])]


def marginal_cross_entropy(head: HLGauss | TwoHot | OneHot, scalars: Real[ArrayLike, "*b"]) -> float:
    """The lowest mean loss, in nats, of a prediction that does not depend on the observation. NumPy only.

    It is the entropy of m = mean of encode(scalars), which is the cross-entropy of m to the targets. A network whose
    mean loss on the same scalars is not below this has learned at most their marginal distribution.

    Args:
      head: a head with the criterion "cross_entropy".
      scalars: targets, such as all returns of a dataset, which are encoded a few thousand at a time.

    Raises:
      TypeError: the head has no histogram, or its loss is not the cross-entropy.
      ValueError: the scalars are not finite, or there are none.
    """
    if not isinstance(head, HLGauss | TwoHot | OneHot) or head.criterion != "cross_entropy":
        raise TypeError(f"marginal_cross_entropy: the loss of {head} is not a cross-entropy to a histogram")
    scalars = as_real(np.asarray(scalars), "scalars", np).reshape(-1)
    if not scalars.size or not np.isfinite(scalars).all():
        raise ValueError("marginal_cross_entropy: scalars must be finite, and at least one")
    total = np.zeros(head.num_outputs)
    for first in range(0, scalars.size, _CHUNK):
        total += head.encode(scalars[first : first + _CHUNK]).sum(0, dtype=np.float64)
    smooth, count = head.label_smoothing, scalars.size
    marginal = (1 - smooth) * total / count + smooth / head.num_outputs
    present = marginal[marginal > 0]
    return float(-(present * np.log(present)).sum())
