"""Plain XLA, a block of rows at a time; the bins and masses of the atoms take [rows, K] of memory.

Apart from the log-sum-exp, the cross-entropy to a projected distribution is linear in the logits: an atom of mass p
between bins j and j + 1 contributes p times the interpolated logit. On CPUs and GPUs each atom reads its two logits
with a gather, and the backward pass adds to their gradients with a scatter, B x K elements each. A TPU gathers and
scatters element by element, and compiling that takes two minutes. There each atom is compared with all bins, B x K x K
comparisons in registers. A GPU also compares if there are few bins: this takes fewer passes and gives the same bits in
every run, which a scatter does not.
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

# Logits in a block. The temporaries of _FEW fit into a CPU's cache; _MANY keep an accelerator busy.
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
    """The number of rows that have about `size` logits: a power of two, at least the 8 rows of a TPU's register."""
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

    # Under shard_map, zeros_like makes the results vary over the same mesh axes as the argument.
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
    # Subtracting the largest logit first keeps the digits of the loss. It cancels only if all mass is in these columns.
    whole = axis_name is None
    origin = base if whole else jnp.zeros_like(base)
    bins, (low, high) = _two_bins(next_probs, rewards, discounts, projection, dtype)
    if dense:
        probs = compared(bins - columns[0, 0], low, high, logits.shape[1])
        score = weigh(probs, row - origin[:, None]).sum(-1)
    else:
        score = jnp.zeros_like(base)
        for place, mass in _on_this_device(columns, whole, (bins, low), (bins + 1, high)):
            found = jnp.take_along_axis(logits, place, axis=1, mode="promise_in_bounds").astype(dtype)
            score += weigh(mass, found - origin[:, None]).sum(-1)
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
    bins, (low, high) = _two_bins(next_probs, rewards, discounts, projection, lse.dtype)
    d_score = -d_loss[:, None]
    if dense:
        gradient += d_score * compared(bins - columns[0, 0], low, high, logits.shape[1])
    else:
        rows = jnp.arange(len(logits))[:, None]
        for place, mass in _on_this_device(columns, whole, (bins, low), (bins + 1, high)):
            gradient = gradient.at[rows, place].add(d_score * mass, mode="promise_in_bounds")
    return gradient.astype(logits.dtype)


_Pair = tuple[Array, Array]  # for each atom: a bin, and the mass that the atom adds to it


def _on_this_device(columns: Int[Array, "1 kp"], whole: bool, *pairs: _Pair) -> tuple[_Pair, ...]:
    """The pairs with bins numbered within this device's columns; bins of other devices get the mass 0."""
    if whole:
        return pairs
    last = columns.shape[1] - 1

    def local(place: Array, mass: Array) -> _Pair:
        place = place - columns[0, 0]
        return jnp.clip(place, 0, last), jnp.where((place >= 0) & (place <= last), mass, 0)

    return tuple(local(*pair) for pair in pairs)


def _two_bins(
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
