"""Diagnostics of a value network: rank and spectrum of its features, dormant units, norms, attention, TD error.

Each diagnostic is a pure function of arrays, which can be jitted. It computes in float32, or in float64 for float64
inputs. Inputs of zeros, from a dead network, give numbers and not NaN. NaN inputs give NaN.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num, PyTree

from rlcls.kernels.arrays import at_least_float32

_TAU = 0.1  # the activity of a dormant unit is at most this multiple of its layer's mean


def singular_values(features: Float[ArrayLike, "b d"], *, centered: bool = False) -> Float[Array, "k"]:
    """The singular values of a batch of features in descending order. Values below rounding errors are 0.

    Args:
      features: one row for each of B observations.
      centered: whether to subtract each feature's mean over the batch first.

    Returns:
      The K = min(B, D) singular values.

    Raises:
      ValueError: the features are not a matrix, or are empty.
    """
    x = at_least_float32(features)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"features must have shape (batch, features), neither of them 0, not {x.shape}")
    # The threshold uses the norm before centring, because centring leaves rounding errors of a constant column.
    rounding = jnp.finfo(x.dtype).eps * (16 + math.sqrt(max(x.shape))) * jnp.linalg.norm(x)
    if centered:
        x = x - jnp.mean(x, axis=0, keepdims=True)
    values = jnp.linalg.svd(x, compute_uv=False)
    return jnp.where(values <= rounding, 0, values)


def rankme(singular_values: Float[ArrayLike, "k"]) -> Float[Array, ""]:
    """The effective rank exp(entropy of the normalised singular values): 1 to K, and 0 for a matrix of zeros.

    It is invariant to scaling, rotating and permuting the features. The paper adds 1e-7 to each normalised singular
    value to keep the logarithm finite; here 0 log 0 is 0.

    Args:
      singular_values: singular values of the features without centring.

    Raises:
      ValueError: the singular values are not a vector.

    Source: Garrido et al. 2023 (RankMe); Roy and Vetterli 2007.
    """
    values = _spectrum(singular_values)
    rank = jnp.exp(jnp.sum(entr(_shares(values))))
    return jnp.where(values[0] == 0, 0, rank)


def srank(singular_values: Float[ArrayLike, "k"], delta: float = 0.01) -> Float[Array, ""]:
    """The smallest number of singular values with a share of 1 - delta in their sum: 1 to K; 0 for a matrix of zeros.

    Args:
      singular_values: singular values of the features without centring.
      delta: the share of the other singular values, above 0 and below 1.

    Returns:
      An integer, in the dtype of the values.

    Raises:
      ValueError: delta is not between 0 and 1, or the singular values are not a vector.

    Source: Kumar et al. 2021 (implicit under-parameterization), definition 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, not {delta}")
    values = _spectrum(singular_values)
    missing = jnp.cumsum(_shares(values)) < 1 - delta
    # For a tiny delta, rounding can leave the sum of all shares below 1 - delta.
    rank = jnp.minimum(1 + jnp.sum(missing), jnp.count_nonzero(values))
    return jnp.where(jnp.isnan(values).any(), jnp.nan, rank.astype(values.dtype))


def alpha_req(singular_values: Float[ArrayLike, "k"], first: int = 4, last: int = 100) -> Float[Array, ""]:
    """The decay of the spectrum: alpha if the j-th eigenvalue of the covariance is proportional to j**-alpha.

    -alpha is the slope of a line through (log j, log eigenvalue). It is fitted by least squares with weights 1/j to the
    positive eigenvalues of ranks `first` to `last`. The authors' code has the same fit over various ranges. A flat
    spectrum has alpha 0. With fewer than two eigenvalues to fit, alpha is infinite; for a matrix of zeros it is 0.

    Args:
      singular_values: singular values of the *centred* features, whose squares are proportional to the eigenvalues.
      first: first rank of the fit, counted from 1.
      last: last rank of the fit.

    Raises:
      ValueError: first and last are not 1 <= first < last, or the singular values are not a vector.

    Source: Agrawal et al. 2022 (alpha-ReQ); Stringer et al. 2019 (the weights).
    """
    if not 1 <= first < last:
        raise ValueError(f"first and last must be 1 <= first < last, not {first} and {last}")
    values = _spectrum(singular_values)
    ranks = jnp.arange(1, len(values) + 1, dtype=values.dtype)
    fitted = (values > 0) & (ranks >= first) & (ranks <= last)
    weights = jnp.where(fitted, 1 / ranks, 0)
    x = jnp.log(ranks)
    # Dividing by the largest value prevents an underflow of squares of small features.
    y = 2 * jnp.log(jnp.where(fitted, values, 1) / jnp.where(values[0] > 0, values[0], 1))
    total = jnp.where(jnp.any(fitted), jnp.sum(weights), 1)
    x = x - jnp.sum(weights * x) / total
    y = y - jnp.sum(weights * y) / total
    enough = jnp.sum(fitted) >= 2
    slope = jnp.sum(weights * x * y) / jnp.where(enough, jnp.sum(weights * x**2), 1)
    decay = jnp.where(enough, -slope, jnp.where(values[0] > 0, jnp.inf, 0.0))
    return jnp.where(jnp.isnan(values).any(), jnp.nan, decay)


def dormant_ratio(activations: Float[ArrayLike, "*b d"], tau: float = _TAU) -> Float[Array, ""]:
    """The share of a layer's units whose mean absolute activation is at most `tau` times the layer's: 0 to 1.

    It is invariant to scaling the activations. In a layer of zeros every unit is dormant. `shown` computes the share
    over the units of all layers, as the paper does.

    Args:
      activations: activations of one layer after the nonlinearity, with units on the last axis. The positions of a
        convolution are samples.
      tau: threshold; with 0, dormant units are those that are exactly 0 on the whole batch.

    Raises:
      ValueError: tau is negative, or there are no activations.

    Source: Sokar et al. 2023, definition 3.1.
    """
    if tau < 0:
        raise ValueError(f"tau must be at least 0, not {tau}")
    x = at_least_float32(activations)
    if x.ndim < 1 or not x.size:
        raise ValueError(f"activations must have shape (..., units), none of them 0, not {x.shape}")
    return jnp.mean(_dormant(jnp.mean(jnp.abs(x), axis=tuple(range(x.ndim - 1))), tau))


def feature_norm(features: Float[ArrayLike, "*b d"]) -> Float[Array, ""]:
    """The mean Euclidean norm of the feature vectors."""
    return jnp.mean(jnp.linalg.norm(at_least_float32(features), axis=-1))


def global_norm(tree: PyTree[Num[ArrayLike, "..."]]) -> Float[Array, ""]:
    """The Euclidean norm of all numbers of a tree, such as a gradient, as one vector."""
    squares = [jnp.sum(jnp.square(at_least_float32(leaf))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def td_error(
    values: Float[ArrayLike, "*b"],
    backups: Float[ArrayLike, "*b"],
    weights: Float[ArrayLike, "*b"] | None = None,
) -> Float[Array, ""]:
    """The weighted mean of |values - backups|, in the units of the values; infinite if all weights are 0.

    With weights of 0 the result is infinite and not NaN, so that JAX_DEBUG_NANS does not stop a run here.

    Args:
      values: Q(s, a).
      backups: r + discount * max Q(s', a').
      weights: weights of the mean; None means equal weights.
    """
    errors = jnp.abs(at_least_float32(values) - at_least_float32(backups))
    if weights is None:
        return jnp.mean(errors)
    total = jnp.sum(at_least_float32(weights))
    return jnp.where(total == 0, jnp.inf, jnp.sum(errors * weights) / jnp.where(total == 0, 1, total))


def attention_entropy(
    queries: Float[ArrayLike, "*b t h d"],
    keys: Float[ArrayLike, "*b s h d"],
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "*b h t"]:
    """The entropy of every query's attention over the keys, in nats: from 0 (one key) to log(S) (uniform).

    It is computed from queries and keys, so the network can use a fused attention that returns no weights.

    Args:
      queries: T positions and H heads, as in `jax.nn.dot_product_attention`.
      keys: S positions and H heads.
      causal: whether query i attends only to keys 0 to i; its entropy is then at most log(i + 1).
      scale: factor of the logits; None means 1/sqrt(D).

    Raises:
      ValueError: the attention is causal and T differs from S, or the shapes do not match.

    Source: Zhai et al. 2023 (sigma-reparam).
    """
    q, k = at_least_float32(queries), at_least_float32(keys)
    if q.ndim < 3 or q.ndim != k.ndim or q.shape[:-3] != k.shape[:-3] or q.shape[-2:] != k.shape[-2:]:
        raise ValueError(
            f"queries and keys must have shapes (..., positions, heads, size) that differ only in positions, "
            f"not {q.shape} and {k.shape}"
        )
    length, size = q.shape[-3], k.shape[-3]
    if causal and length != size:
        raise ValueError(f"causal attention needs as many queries as keys, not {length} and {size}")
    logits = jnp.einsum("...thd,...shd->...hts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen: Bool[Array, "t s"] = jnp.tri(length, size, dtype=bool) if causal else jnp.ones((length, size), bool)
    return jnp.sum(entr(jax.nn.softmax(logits, axis=-1, where=seen)), axis=-1)


def attention_entropy_bound(logit_norm: ArrayLike, num_keys: ArrayLike) -> Float[Array, "..."]:
    """A lower bound of the entropy of attention over `num_keys` keys, which falls exponentially with `logit_norm`.

    A softmax is invariant to a shift, so the norm may be that of the logits minus their mean. The entropy equals the
    bound if one logit is larger than the others and the others are equal.

    Args:
      logit_norm: an upper bound of the Euclidean norm of one query's logits, such as scale * ||W_q W_k^T||_2 *
        ||X||_2**2 (spectral norms) for tokens X [T, D] as rows and weights D x d.
      num_keys: T, at least 1; i + 1 for query i of causal attention.

    Returns:
      The bound in nats, in the broadcast shape of both arguments.

    Source: Zhai et al. 2023 (sigma-reparam), their lower bound of the attention entropy.
    """
    norm, others = at_least_float32(logit_norm), at_least_float32(num_keys) - 1
    # The difference between the largest logit and the others, if the norm is this large.
    gap = norm * jnp.sqrt((others + 1) / jnp.maximum(others, 1))
    mass = others * jnp.exp(-gap)  # attention to all other keys, divided by that to the largest
    return jnp.log1p(mass) + gap * mass / (1 + mass)


def feature_metrics(features: Float[ArrayLike, "b d"]) -> dict[str, Array]:
    """The diagnostics of one batch of features, by name. `dormant_ratio` treats the features as one layer.

    Raises:
      ValueError: the features are not a matrix, or are empty.
    """
    values = singular_values(features)
    return {
        "rankme": rankme(values),
        "srank": srank(values),
        "alpha_req": alpha_req(singular_values(features, centered=True)),
        "dormant_ratio": dormant_ratio(features),
        "feature_norm": feature_norm(features),
    }


def shown(intermediates: PyTree, *, causal: bool = False) -> dict[str, Array]:
    """The diagnostics of captured intermediates.

    Args:
      intermediates: nested dicts of tuples with one entry for each call of a module, from `networks.functional`.
      causal: whether the attention is causal.

    Returns:
      The mean of the scalars of each name. From `queries` and `keys` in the same dict: attention_entropy, the mean over
      all heads, and attention_entropy_least, the lowest mean of a head. From `activity`, each hidden layer's vector of
      mean absolute activations: dormant_ratio, the share of units in all layers whose activity is at most 0.1 times
      that of their layer.
    """
    scalars: dict[str, list[Array]] = {}
    heads: list[Array] = []
    dormant: list[Array] = []

    def visit(node: dict[Any, Any]) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                visit(value)
            else:
                scalars.setdefault(str(name), []).extend(
                    at_least_float32(x) for x in value if jnp.ndim(x) == 0
                )
        for queries, keys in zip(node.get("queries", ()), node.get("keys", ()), strict=True):
            entropy = attention_entropy(queries, keys, causal=causal)
            heads.append(jnp.mean(entropy, axis=(*range(entropy.ndim - 2), -1)))
        dormant.extend(_dormant(at_least_float32(scores), _TAU) for scores in node.get("activity", ()))

    visit(intermediates)
    found = {name: jnp.mean(jnp.stack(values)) for name, values in scalars.items() if values}
    if heads:
        every = jnp.concatenate(heads)
        found |= {"attention_entropy": jnp.mean(every), "attention_entropy_least": jnp.min(every)}
    if dormant:
        found["dormant_ratio"] = jnp.mean(jnp.concatenate(dormant), dtype=jnp.float32)
    return found


def _dormant(scores: Float[Array, "d"], tau: float) -> Float[Array, "d"]:
    """1 for a dormant unit and 0 for another one; NaN if an activity of the layer is NaN."""
    threshold = tau * jnp.mean(scores)
    return jnp.where(jnp.isnan(threshold), jnp.nan, (scores <= threshold).astype(scores.dtype))


def _spectrum(values: Any) -> Float[Array, "k"]:
    values = at_least_float32(values)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"singular_values must be a vector, not of shape {values.shape}")
    return values


def _shares(values: Float[Array, "k"]) -> Float[Array, "k"]:
    # Dividing by the largest value first prevents an overflow of the sum.
    relative = values / jnp.where(values[0] > 0, values[0], 1)
    return relative / jnp.maximum(jnp.sum(relative), 1)
