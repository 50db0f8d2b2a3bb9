"""What to watch inside a value network: rank and spectrum of its features, dormant units, norms, attention, TD error.

Pure functions of arrays, made to run inside a compiled program. They compute in float32 at least, and in float64 where
their input is. Zeros, which a network that died gives, are answered with numbers and never with NaN.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

_TAU = 0.1  # of a dormant unit


def singular_values(features: Float[ArrayLike, "b d"], *, centered: bool = False) -> Float[Array, "k"]:
    """The singular values of a batch of features, from the largest on; those that are mere rounding are 0.

    Args:
      features: a row for each of B observations.
      centered: subtract each feature's mean over the batch first.

    Returns:
      The K = min(B, D) singular values.

    Raises:
      ValueError: not a matrix, or an empty one.
    """
    x = _floating(features)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"features must have shape (batch, features), neither of them 0, not {x.shape}")
    # The norm of what came in decides what rounding is: centring a column of equal numbers leaves nothing else.
    rounding = jnp.finfo(x.dtype).eps * (16 + math.sqrt(max(x.shape))) * jnp.linalg.norm(x)
    if centered:
        x = x - jnp.mean(x, axis=0, keepdims=True)
    values = jnp.linalg.svd(x, compute_uv=False)
    return jnp.where(values > rounding, values, 0)


def rankme(singular_values: Float[ArrayLike, "k"]) -> Float[Array, ""]:
    """The effective rank exp(entropy of the normalised singular values): 1 to K, and 0 for a matrix of zeros.

    Scaling, rotating or permuting the features does not change it. The paper adds 1e-7 to each share to keep the
    logarithm finite; here 0 log 0 is 0.

    Args:
      singular_values: of the features as they are, not centred.

    Raises:
      ValueError: they are not a vector.

    Source: Garrido et al. 2023 (RankMe); Roy and Vetterli 2007.
    """
    values = _spectrum(singular_values)
    rank = jnp.exp(jnp.sum(entr(_shares(values))))
    return jnp.where(values[0] > 0, rank, 0)


def srank(singular_values: Float[ArrayLike, "k"], delta: float = 0.01) -> Int[Array, ""]:
    """How many of the largest singular values make up 1 - delta of their sum: 1 to K, and 0 for a matrix of zeros.

    Args:
      singular_values: of the features as they are, not centred.
      delta: share of the sum that may be missing, above 0 and below 1.

    Returns:
      int32.

    Raises:
      ValueError: delta is not between 0 and 1, or the singular values are not a vector.

    Source: Kumar et al. 2021 (implicit under-parameterization), definition 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, not {delta}")
    values = _spectrum(singular_values)
    missing = jnp.cumsum(_shares(values)) < 1 - delta
    # Rounding may leave the sum of all shares below 1 - delta where delta is tiny.
    rank = jnp.minimum(1 + jnp.sum(missing), jnp.count_nonzero(values))
    return rank.astype(jnp.int32)


def alpha_req(singular_values: Float[ArrayLike, "k"], first: int = 4, last: int = 100) -> Float[Array, ""]:
    """How fast the spectrum decays: alpha where the j-th eigenvalue of the covariance goes like j**-alpha.

    The slope of the line through (log j, log eigenvalue), least squares with weights 1/j, over the ranks `first` to
    `last` as far as the eigenvalues are not 0. The authors' code fits so; their range has varied. A flat spectrum has
    alpha 0. Where fewer than two eigenvalues are left to fit it is infinite, for matrices of zeros 0.

    Args:
      singular_values: of the *centred* features; their squares are in proportion to the covariance's eigenvalues.
      first: the first rank of the fit, counted from 1.
      last: the last one.

    Raises:
      ValueError: not 1 <= first < last, or the singular values are not a vector.

    Source: Agrawal et al. 2022 (alpha-ReQ); the weights are Stringer et al. 2019's.
    """
    if not 1 <= first < last:
        raise ValueError(f"first and last must be 1 <= first < last, not {first} and {last}")
    values = _spectrum(singular_values)
    ranks = jnp.arange(1, len(values) + 1, dtype=values.dtype)
    fitted = (values > 0) & (ranks >= first) & (ranks <= last)
    weights = jnp.where(fitted, 1 / ranks, 0)
    x = jnp.log(ranks)
    # Relative to the largest, or squares of small features would be lost.
    y = 2 * jnp.log(jnp.where(fitted, values, 1) / jnp.where(values[0] > 0, values[0], 1))
    total = jnp.where(jnp.any(fitted), jnp.sum(weights), 1)
    x = x - jnp.sum(weights * x) / total
    y = y - jnp.sum(weights * y) / total
    enough = jnp.sum(fitted) >= 2
    slope = jnp.sum(weights * x * y) / jnp.where(enough, jnp.sum(weights * x**2), 1)
    return jnp.where(enough, -slope, jnp.where(values[0] > 0, jnp.inf, 0.0))


def dormant_ratio(activations: Float[ArrayLike, "*b d"], tau: float = _TAU) -> Float[Array, ""]:
    """The share of a layer's units whose mean absolute activation is at most `tau` times the layer's: 0 to 1.

    Scaling the activations does not change it. In a layer of zeros every unit is dormant. `shown` counts the units of
    all layers together, as the paper does.

    Args:
      activations: after the nonlinearity, the units of one layer last; positions of a convolution count as samples.
      tau: 0 counts the units that are exactly 0 on the whole batch.

    Raises:
      ValueError: tau is negative, or there is no activation.

    Source: Sokar et al. 2023, definition 3.1.
    """
    if tau < 0:
        raise ValueError(f"tau must be at least 0, not {tau}")
    x = _floating(activations)
    if x.ndim < 1 or not x.size:
        raise ValueError(f"activations must have shape (..., units), none of them 0, not {x.shape}")
    return jnp.mean(_dormant(jnp.mean(jnp.abs(x), axis=tuple(range(x.ndim - 1))), tau), dtype=x.dtype)


def feature_norm(features: Float[ArrayLike, "*b d"]) -> Float[Array, ""]:
    """The Euclidean norm of a feature vector, the mean over all of them."""
    return jnp.mean(jnp.linalg.norm(_floating(features), axis=-1))


def global_norm(tree: PyTree[Num[ArrayLike, "..."]]) -> Float[Array, ""]:
    """The Euclidean norm of all numbers of a tree, such as a gradient, taken as one vector."""
    squares = [jnp.sum(jnp.square(_floating(leaf))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def td_error(
    values: Float[ArrayLike, "*b"],
    backups: Float[ArrayLike, "*b"],
    weights: Float[ArrayLike, "*b"] | None = None,
) -> Float[Array, ""]:
    """The mean of |values - backups|, in the units of the values; NaN where all weights are 0: nothing was measured.

    Args:
      values: Q(s, a), whichever head made it.
      backups: r + discount * max Q(s', a').
      weights: of the mean; equal ones where none are given.
    """
    errors = jnp.abs(_floating(values) - _floating(backups))
    return jnp.mean(errors) if weights is None else jnp.sum(errors * weights) / jnp.sum(_floating(weights))


def attention_entropy(
    queries: Float[ArrayLike, "*b t h d"],
    keys: Float[ArrayLike, "*b s h d"],
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "*b h t"]:
    """The entropy of every query's attention over the keys: 0 for all on one key to log(S) for uniform, in nats.

    It is computed anew from queries and keys, so that attention itself can stay fused.

    Args:
      queries: T positions, H heads, as `jax.nn.dot_product_attention` takes them.
      keys: S positions.
      causal: query i sees the keys up to i only, which leaves it log(i + 1) at most, i from 0.
      scale: of the logits; 1/sqrt(D) where none is given.

    Raises:
      ValueError: causal attention with T other than S, or shapes that do not fit.

    Source: Zhai et al. 2023 (sigma-reparam).
    """
    q, k = _floating(queries), _floating(keys)
    if q.ndim < 3 or q.ndim != k.ndim or q.shape[:-3] != k.shape[:-3] or q.shape[-2:] != k.shape[-2:]:
        raise ValueError(
            f"queries and keys must have shapes (..., positions, heads, size) that differ in positions at most, "
            f"not {q.shape} and {k.shape}"
        )
    length, size = q.shape[-3], k.shape[-3]
    if causal and length != size:
        raise ValueError(f"causal attention needs as many queries as keys, not {length} and {size}")
    logits = jnp.einsum("...thd,...shd->...hts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen: Bool[Array, "t s"] = jnp.tri(length, size, dtype=bool) if causal else jnp.ones((length, size), bool)
    return jnp.sum(entr(jax.nn.softmax(logits, axis=-1, where=seen)), axis=-1)


def attention_entropy_bound(logit_norm: ArrayLike, num_keys: ArrayLike) -> Float[Array, "..."]:
    """The least entropy that attention over `num_keys` keys can have; it falls exponentially with `logit_norm`.

    A softmax does not see a shift, so the norm may be that of the logits less their mean. The bound is reached by one
    logit above others that are equal.

    Args:
      logit_norm: an upper bound on the Euclidean norm of one query's logits. With tokens X [T, D] as rows and
        weights D x d, scale * ||W_q W_k^T||_2 * ||X||_2**2, spectral norms, is one.
      num_keys: T, at least 1; for query i of causal attention i + 1.

    Returns:
      Nats, of the shape that both arguments broadcast to.

    Source: Zhai et al. 2023 (sigma-reparam), their lower bound of the attention entropy.
    """
    norm, others = _floating(logit_norm), _floating(num_keys) - 1
    # How far the one logit is above the others when the norm is used up.
    gap = norm * jnp.sqrt((others + 1) / jnp.maximum(others, 1))
    mass = others * jnp.exp(-gap)  # of the others, in units of the one's
    return jnp.log1p(mass) + gap * mass / (1 + mass)


def feature_metrics(features: Float[ArrayLike, "b d"]) -> dict[str, Array]:
    """All that is told of the features of one batch, by name: as if they were the only layer.

    Raises:
      ValueError: not a matrix, or an empty one.
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
    """What modules show of themselves, in numbers.

    Args:
      intermediates: nested dicts of tuples, an entry for each call of a module, as `networks.functional` captures them.
      causal: whether the attentions among them are.

    Returns:
      The scalars by name, the mean of all that go by it. Of `queries` and `keys` beside each other, as
      `attention_entropy` takes them, attention_entropy, a mean over everything, and attention_entropy_least, that of
      the head where it is least. Of `activity`, a vector for each hidden layer of its units' mean absolute activations,
      dormant_ratio: the share of all layers' units that are at most 0.1 times as active as their layer.
    """
    scalars: dict[str, list[Array]] = {}
    heads: list[Array] = []
    dormant: list[Array] = []

    def visit(node: dict[Any, Any]) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                visit(value)
            else:
                scalars.setdefault(str(name), []).extend(_floating(x) for x in value if jnp.ndim(x) == 0)
        for queries, keys in zip(node.get("queries", ()), node.get("keys", ()), strict=True):
            entropy = attention_entropy(queries, keys, causal=causal)
            heads.append(jnp.mean(entropy, axis=(*range(entropy.ndim - 2), -1)))
        dormant.extend(_dormant(_floating(scores), _TAU) for scores in node.get("activity", ()))

    visit(intermediates)
    found = {name: jnp.mean(jnp.stack(values)) for name, values in scalars.items() if values}
    if heads:
        every = jnp.concatenate(heads)
        found |= {"attention_entropy": jnp.mean(every), "attention_entropy_least": jnp.min(every)}
    if dormant:
        found["dormant_ratio"] = jnp.mean(jnp.concatenate(dormant), dtype=jnp.float32)
    return found


def _dormant(scores: Float[Array, "d"], tau: float) -> Bool[Array, "d"]:
    return scores <= tau * jnp.mean(scores)


def _floating(x: Any) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _spectrum(values: Any) -> Float[Array, "k"]:
    values = _floating(values)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"singular_values must be a vector, not of shape {values.shape}")
    return values


def _shares(values: Float[Array, "k"]) -> Float[Array, "k"]:
    # Divided by the largest first: the sum of large ones would overflow.
    relative = values / jnp.where(values[0] > 0, values[0], 1)
    return relative / jnp.maximum(jnp.sum(relative), 1)
