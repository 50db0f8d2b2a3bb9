"""Plain XLA, a block of rows at a time: the places and shares of their atoms take [rows, K] of memory.

The cross-entropy to a projected distribution is linear in the logits: an atom of mass p between bins j and j + 1
costs p times the interpolated logit. On CPUs and GPUs each atom looks up its two logits, and the gradient is added
back there: a gather forward and a scatter backward, B x K of each. A TPU gathers and scatters element by element, and
compiles that for two minutes; there each atom is compared with all bins, B x K x K in registers. A GPU compares too
if the bins are few: that takes fewer passes and gives the same bits in every run, unlike additions in memory.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ..arrays import AxisName, sum_dtype, weigh
from ..histogram.mixture import compared
from ..histogram.projection import TwoHot
from ..histogram.xla import column_numbers, masked
from .reference import moved_atoms

# Logits in a block. A CPU's cache holds the temporaries of _FEW; an accelerator needs _MANY to be busy.
_FEW, _MANY = 2**14, 2**18
_FEW_BINS = 64  # a GPU compares atoms with at most this many bins


def forward(
    logits: Float[Array, "b kp"],
    next_probs: Float[Array, "b k"],
    rewards: Float[Array, " b"],
    discounts: Float[Array, " b"],
    projection: TwoHot,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row; with `axis_name`, of this device's columns only."""
    return _on_this_platform(_forward, projection, axis_name, logits, next_probs, rewards, discounts)


def backward(
    logits: Float[Array, "b kp"],
    next_probs: Float[Array, "b k"],
    rewards: Float[Array, " b"],
    discounts: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: TwoHot,
    axis_name: AxisName | None = None,
) -> Float[Array, "b kp"]:
    """The gradient of the logits; with `axis_name`, of this device's columns."""
    arrays = (logits, next_probs, rewards, discounts, lse, d_loss, d_lse)
    return _on_this_platform(_backward, projection, axis_name, *arrays)


def _on_this_platform(
    function: Callable[..., Any], projection: TwoHot, axis_name: AxisName | None, *arrays: Array
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
    """The number of rows with about `size` logits: a power of two, at least the 8 that a TPU's register holds."""
    return 1 << max(3, (size // num_bins).bit_length() - 1)


def _by_blocks(function: Callable[..., Any], rows: int, *arrays: Array) -> Any:
    """function(*arrays), `rows` rows at a time; the last block overlaps with the one before it."""
    count = len(arrays[0])
    if count <= rows:
        return function(*arrays)

    def step(number: Array, whole: Any) -> Any:
        start = jnp.minimum(number * rows, count - rows)
        part = function(*(lax.dynamic_slice_in_dim(x, start, rows) for x in arrays))
        return jax.tree.map(lambda w, x: lax.dynamic_update_slice_in_dim(w, x, start, 0), whole, part)

    # zeros_like of an argument: under shard_map the results must vary over the mesh axes that it varies over.
    shapes = jax.eval_shape(function, *(x[:rows] for x in arrays))
    zeros = jax.tree.map(lambda x: jnp.zeros_like(arrays[0], x.dtype, shape=(count, *x.shape[1:])), shapes)
    return lax.fori_loop(0, -(-count // rows), step, zeros)


def _forward(
    projection: TwoHot,
    axis_name: AxisName | None,
    dense: bool,
    logits: Array,
    next_probs: Array,
    rewards: Array,
    discounts: Array,
) -> tuple[Array, Array]:
    dtype = sum_dtype(logits)
    columns, real = column_numbers(logits.shape[1], projection, axis_name)
    row = masked(real, logits.astype(dtype), -jnp.inf)
    top = row.max(-1)
    base = jnp.where(jnp.isfinite(top), top, 0)
    log_total = jnp.log(jnp.exp(row - base[:, None]).sum(-1))
    # Logits minus the largest keep the digits of the loss. This needs the whole row, with all of its mass.
    whole = axis_name is None
    origin = base if whole else jnp.zeros_like(base)
    bins, (low, high) = _shares(next_probs, rewards, discounts, projection, dtype)
    if dense:
        probs = compared(bins - columns[0, 0], low, high, logits.shape[1])
        score = weigh(probs, row - origin[:, None]).sum(-1)
    else:
        score = jnp.zeros_like(base)
        for place, share in _here(columns, whole, (bins, low), (bins + 1, high)):
            found = jnp.take_along_axis(logits, place, axis=1, mode="promise_in_bounds").astype(dtype)
            score += weigh(share, found - origin[:, None]).sum(-1)
    if whole:
        return next_probs.sum(-1) * log_total - score, base + log_total
    return base + log_total - score, base + log_total


def _backward(
    projection: TwoHot,
    axis_name: AxisName | None,
    dense: bool,
    logits: Array,
    next_probs: Array,
    rewards: Array,
    discounts: Array,
    lse: Array,
    d_loss: Array,
    d_lse: Array,
) -> Array:
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


_Pair = tuple[Array, Array]  # bins, and the mass that each atom adds there


def _here(columns: Int[Array, "1 kp"], whole: bool, *pairs: _Pair) -> tuple[_Pair, ...]:
    """The pairs with indices into this device's columns as bins, and a mass of 0 for bins of other devices."""
    if whole:
        return pairs
    last = columns.shape[1] - 1

    def local(place: Array, share: Array) -> _Pair:
        place = place - columns[0, 0]
        return jnp.clip(place, 0, last), jnp.where((place >= 0) & (place <= last), share, 0)

    return tuple(local(*pair) for pair in pairs)


def _shares(
    next_probs: Float[Array, "b k"],
    rewards: Float[Array, " b"],
    discounts: Float[Array, " b"],
    projection: TwoHot,
    dtype: np.dtype,
) -> tuple[Int[Array, "b k"], tuple[Float[Array, "b k"], Float[Array, "b k"]]]:
    """The lower of each atom's two bins, and the masses of the lower and the upper one."""
    bins, fractions = projection.split(moved_atoms(rewards, discounts, projection))
    fractions, probs = fractions.astype(dtype), next_probs.astype(dtype)
    return bins, (probs * (1 - fractions), probs * fractions)
