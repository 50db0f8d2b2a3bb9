"""Plain XLA, some rows at a time: where their atoms fall, and what these share out, is [rows, K] and no more.

The cross-entropy to a projected distribution is linear in the logits: an atom of mass p that falls between bins
j and j + 1 costs p times the interpolated logit. On CPUs and GPUs each atom looks up its two logits, and the
gradient is put back there: a gather forward and a scatter backward, B x K of each. A TPU does either element by
element, and takes two minutes to compile it; there each atom is compared with all bins: B x K x K, in registers.
So it is for few bins on a GPU: fewer passes, and the bits are the same in every run, which additions in memory
do not promise.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..histogram.band import AxisName
from ..histogram.mixture import compared
from ..histogram.xla import column_numbers, masked
from .reference import moved_atoms

# Logits at a time: on a CPU the temporaries stay in the cache, elsewhere the chip needs so many to be busy.
_FEW, _MANY = 2**14, 2**18
_FEW_BINS = 64  # to be compared with on a GPU, too


def forward(
    logits: Float[Array, "b kp"],
    next_probs: Float[Array, "b k"],
    rewards: Float[Array, " b"],
    discounts: Float[Array, " b"],
    projection: Any,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row; with `axis_name`, of this device's columns alone."""
    return _on_this_platform(_forward, projection, axis_name, logits, next_probs, rewards, discounts)


def backward(
    logits: Float[Array, "b kp"],
    next_probs: Float[Array, "b k"],
    rewards: Float[Array, " b"],
    discounts: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Any,
    axis_name: AxisName | None = None,
) -> Float[Array, "b kp"]:
    """The gradient of the logits; with `axis_name`, of this device's columns."""
    arrays = (logits, next_probs, rewards, discounts, lse, d_loss, d_lse)
    return _on_this_platform(_backward, projection, axis_name, *arrays)


def _on_this_platform(
    function: Callable[..., Any], projection: Any, axis_name: AxisName | None, *arrays: Array
) -> Any:
    def branch(dense: bool, size: int) -> Callable[..., Any]:
        run = functools.partial(function, projection, axis_name, dense)
        return functools.partial(_by_blocks, run, rows_of(projection.num_bins, size))

    return lax.platform_dependent(
        *arrays,
        cpu=branch(False, _FEW),
        tpu=branch(True, _MANY),
        default=branch(projection.num_bins <= _FEW_BINS, _MANY),
    )


def rows_of(num_bins: int, size: int) -> int:
    """How many rows about `size` logits are: a power of two, at least the 8 that lie in a register of a TPU."""
    return 1 << max(3, (size // num_bins).bit_length() - 1)


def _by_blocks(function: Callable[..., Any], rows: int, *arrays: Array) -> Any:
    """function(*arrays), so many rows at a time; the last block begins early, and does some rows again."""
    count = len(arrays[0])
    if count <= rows:
        return function(*arrays)

    def step(number: Any, whole: Any) -> Any:
        start = jnp.minimum(number * rows, count - rows)
        part = function(*(lax.dynamic_slice_in_dim(x, start, rows) for x in arrays))
        return jax.tree.map(lambda w, x: lax.dynamic_update_slice_in_dim(w, x, start, 0), whole, part)

    # The results' zeros are made of an argument: under shard_map they have to vary as it does.
    shapes = jax.eval_shape(function, *(x[:rows] for x in arrays))
    zeros = jax.tree.map(lambda x: jnp.zeros_like(arrays[0], x.dtype, shape=(count, *x.shape[1:])), shapes)
    return lax.fori_loop(0, -(-count // rows), step, zeros)


def _forward(
    projection: Any,
    axis_name: AxisName | None,
    dense: bool,
    logits: Any,
    next_probs: Any,
    rewards: Any,
    discounts: Any,
) -> Any:
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    columns, real = column_numbers(logits.shape[1], projection, axis_name)
    row = masked(real, logits.astype(dtype), -jnp.inf)
    top = row.max(-1)
    base = jnp.where(jnp.isfinite(top), top, 0)
    log_total = jnp.log(jnp.exp(row - base[:, None]).sum(-1))
    # Measured from the largest logit, the loss keeps its digits; that takes all the mass.
    whole = axis_name is None
    origin = base if whole else jnp.zeros_like(base)
    bins, (low, high) = _shares(next_probs, rewards, discounts, projection, dtype)
    if dense:
        probs = compared(bins - columns[0, 0], low, high, logits.shape[1])
        score = _times(probs, row - origin[:, None]).sum(-1)
    else:
        score = jnp.zeros_like(base)
        for place, share in _here(columns, whole, (bins, low), (bins + 1, high)):
            found = jnp.take_along_axis(logits, place, axis=1, mode="promise_in_bounds").astype(dtype)
            score += _times(share, found - origin[:, None]).sum(-1)
    if whole:
        return next_probs.sum(-1) * log_total - score, base + log_total
    return base + log_total - score, base + log_total


def _backward(
    projection: Any,
    axis_name: AxisName | None,
    dense: bool,
    logits: Any,
    next_probs: Any,
    rewards: Any,
    discounts: Any,
    lse: Any,
    d_loss: Any,
    d_lse: Any,
) -> Any:
    columns, real = column_numbers(logits.shape[1], projection, axis_name)
    whole = axis_name is None
    base = jnp.where(jnp.isfinite(lse), lse, 0)
    softmax = jnp.exp(logits.astype(lse.dtype) - base[:, None])
    d_log_total = d_loss * next_probs.sum(-1) if whole else d_loss
    gradient = masked(real, (d_log_total + d_lse)[:, None] * softmax, 0)
    bins, (low, high) = _shares(next_probs, rewards, discounts, projection, lse.dtype)
    d_score = -d_loss[:, None]
    if dense:
        gradient += d_score * compared(bins - columns[0, 0], low, high, logits.shape[1])
    else:
        rows = jnp.arange(len(logits))[:, None]
        for place, share in _here(columns, whole, (bins, low), (bins + 1, high)):
            gradient = gradient.at[rows, place].add(d_score * share, mode="promise_in_bounds")
    return gradient.astype(logits.dtype)


def _here(columns: Any, whole: bool, *pairs: Any) -> Any:
    """Places and shares of the atoms, as indices into the columns at hand; elsewhere than there they share nothing."""
    if whole:
        return pairs
    last = columns.shape[1] - 1

    def local(place: Any, share: Any) -> Any:
        place = place - columns[0, 0]
        return jnp.clip(place, 0, last), jnp.where((place >= 0) & (place <= last), share, 0)

    return tuple(local(*pair) for pair in pairs)


def _times(share: Any, x: Any) -> Any:
    """A logit of -inf costs nothing where there is no mass."""
    return jnp.where(share == 0, 0, share * x)


def _shares(next_probs: Any, rewards: Any, discounts: Any, projection: Any, dtype: Any) -> Any:
    """The lower bin [B, K] of each atom's two, and the mass that it gives to either."""
    bins, fractions = projection.split(moved_atoms(rewards, discounts, projection))
    fractions, probs = fractions.astype(dtype), next_probs.astype(dtype)
    return bins, (probs * (1 - fractions), probs * fractions)
