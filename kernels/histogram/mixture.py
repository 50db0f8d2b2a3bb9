"""Many weighted targets in one histogram: C51's projection, whose every atom lands in two neighbouring bins."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

# Sums that are made side by side, for the rounding: an end of an episode puts all atoms in one place.
_LANES = 4


def add_pairs(
    bins: Int[Any, "*b n"], lower: Float[Any, "*b n"], upper: Float[Any, "*b n"], num_bins: int
) -> Float[Any, "*b {num_bins}"]:
    """Histograms with `lower` added to each of the bins and `upper` to the one after it.

    NumPy in, NumPy out. A NaN, or what is infinite, makes the whole row NaN. On a CPU the work grows with
    n; elsewhere with n * num_bins, in registers, because there additions to an address that is shared come
    in any order, and equal runs would end in different bits.

    Args:
      bins: from 0 to num_bins - 2.
      lower: what the bin gets.
      upper: what the next bin gets.
      num_bins: of the histogram.
    """
    xp: Any = np if isinstance(lower, np.ndarray) else jnp
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
    """Each pair added to a window of two bins, in their order."""
    window = lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )
    lane = np.arange(bins.shape[-1], dtype=np.int32) % _LANES

    def row(bins: Array, pairs: Array) -> Array:
        empty = jnp.zeros(_LANES * num_bins, pairs.dtype)
        places = (bins + lane * np.int32(num_bins))[:, None]
        added = lax.scatter_add(empty, places, pairs, window, mode=lax.GatherScatterMode.CLIP)
        return added.reshape(_LANES, num_bins).sum(0)

    # Mapped, not indexed by a row number: a batch that is spread over devices stays where it is.
    for _ in range(bins.ndim - 1):
        row = jax.vmap(row)
    return row(bins, jnp.stack([lower, upper], -1))


def compared(
    bins: Int[Array, "*b n"], lower: Float[Array, "*b n"], upper: Float[Array, "*b n"], num_bins: int
) -> Float[Array, "*b k"]:
    """Each pair compared with all bins; one fused sum where the compiler does not write out the products."""
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
