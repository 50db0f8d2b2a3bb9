"""Sums of many weighted targets in one histogram. C51's projection adds each atom to two neighbouring bins."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ..arrays import namespace

# Each bin is the sum of this many partial sums, which limits rounding errors. At the end of an episode all atoms move
# to one place, so one bin is a sum over all of them.
_LANES = 4


def add_pairs(
    bins: Int[Any, "*b n"], lower: Float[Any, "*b n"], upper: Float[Any, "*b n"], num_bins: int
) -> Float[Any, "*b {num_bins}"]:
    """Histograms with `lower` added to each of the bins and `upper` to the bin after it.

    NumPy in, NumPy out. A value that is not finite makes its whole row NaN. The work grows with n on a CPU. On an
    accelerator it grows with n * num_bins, in registers. A scatter would do less work there, but would add in an order
    that differs between runs, so equal runs would give different bits.

    Args:
      bins: numbers from 0 to num_bins - 2.
      lower: the mass added to the bin.
      upper: the mass added to the next bin.
      num_bins: length of the histogram.
    """
    xp = namespace(lower)
    if xp is np:
        histogram = _added_in_numpy(bins, lower, upper, num_bins)
    else:
        histogram = lax.platform_dependent(
            bins,
            lower,
            upper,
            cpu=partial(_scattered, num_bins=num_bins),
            default=partial(compared, num_bins=num_bins),
        )
    sound = xp.isfinite(lower + upper).all(-1, keepdims=True)
    return xp.where(sound, histogram, lower.dtype.type(np.nan))


def _scattered(
    bins: Int[Array, "*b n"], lower: Float[Array, "*b n"], upper: Float[Array, "*b n"], num_bins: int
) -> Float[Array, "*b k"]:
    """Adds each pair to a window of two bins, in the order of the pairs."""
    window = lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )
    lane = np.arange(bins.shape[-1], dtype=np.int32) % _LANES

    def row(bins: Array, pairs: Array) -> Array:
        empty = jnp.zeros(_LANES * num_bins, pairs.dtype)
        places = (bins + lane * np.int32(num_bins))[:, None]
        added = lax.scatter_add(empty, places, pairs, window, mode=lax.GatherScatterMode.CLIP)
        return added.reshape(_LANES, num_bins).sum(0)

    # With vmap a batch that is sharded over devices stays sharded; an index of rows would gather it.
    for _ in range(bins.ndim - 1):
        row = jax.vmap(row)
    return row(bins, jnp.stack([lower, upper], -1))


def compared(
    bins: Int[Array, "*b n"], lower: Float[Array, "*b n"], upper: Float[Array, "*b n"], num_bins: int
) -> Float[Array, "*b k"]:
    """Compares each pair with all bins; XLA fuses the comparisons into the sum."""
    columns = np.arange(num_bins, dtype=np.int32).reshape((1,) * bins.ndim + (-1,))
    distance = columns - bins[..., None]
    zero = lower.dtype.type(0)
    shares = jnp.where(distance == 1, upper[..., None], zero)
    return jnp.where(distance == 0, lower[..., None], shares).sum(-2)


def _added_in_numpy(bins: np.ndarray, lower: np.ndarray, upper: np.ndarray, num_bins: int) -> np.ndarray:
    rows = np.indices(bins.shape, sparse=True)[:-1]
    histogram = np.zeros((*bins.shape[:-1], num_bins), lower.dtype)
    np.add.at(histogram, (*rows, bins), lower)
    np.add.at(histogram, (*rows, bins + 1), upper)
    return histogram
