"""Histograms of targets with the same bits in NumPy and on every device, for data loaders that encode targets.

The histograms of `head.encode` in NumPy and in JAX are equal up to rounding: XLA may fuse a product and a sum into one
rounding, and its error function is not SciPy's. Here the arithmetic on targets is one difference, one product and one
rounding to an integer, which no compiler fuses. The integer selects entries of two tables, whose product is a
probability.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float32, Real

from rlcls import kernels
from rlcls.kernels.arrays import as_real, clip, namespace
from rlcls.kernels.histogram.projection import reach

from .categorical import HLGauss, OneHot, TwoHot

_STEPS = 1024  # per bin
_MAX_BINS = 2**24 // _STEPS  # float32 represents the place, an integer below 2**24


def portable_encode(head: HLGauss | OneHot | TwoHot, scalars: Real[ArrayLike, "*b"]) -> Float32[Any, "*b k"]:
    """`head.encode` of scalars rounded to 1/1024 of a bin, with the same bits in NumPy and on every device.

    NumPy in, NumPy out; JAX in, JAX out. A scalar is rounded to float32, clipped to the support, and rounded to 1/1024
    of a bin, or to the precision of float32 where that is coarser. The decoded value moves by as much, usually by less
    than 0.0005 bins. The row of a NaN is NaN. The bits are equal on all devices that round differences and products of
    float32 as in IEEE 754.

    Raises:
      TypeError: the head is none of these three, or the scalars are not real.
      ValueError: the bins have unequal widths, there are more than 16,384, or the support has a scalar_transform.

    >>> import jax
    >>> from rlcls import heads
    >>> head, targets = heads.recap("hlgauss"), np.linspace(-1, 0, 7, dtype=np.float32)
    >>> on_device = jax.jit(lambda x: heads.portable_encode(head, x))(targets)
    >>> bool((heads.portable_encode(head, targets) == on_device).all())
    True
    """
    tables = _tables(_check(head).projection)
    xp = namespace(scalars)
    scalars = as_real(scalars, "scalars", xp).astype(np.float32)
    is_number = scalars == scalars
    places = (clip(scalars, tables.low, tables.high) - tables.low) * tables.inverse
    places = xp.rint(xp.where(is_number, places, np.float32(0))).astype(np.int32)
    places = xp.clip(places, 0, tables.last)[..., None]
    bins, steps = places // _STEPS, places % _STEPS
    offsets = np.arange(head.num_outputs, dtype=np.int32) - bins
    columns = xp.clip(offsets - tables.first_offset, 0, tables.shapes.shape[1] - 1)
    probs = xp.asarray(tables.shapes)[steps, columns]
    if tables.scales is not None:
        probs = probs * xp.asarray(tables.scales)[places]
    return xp.where(is_number[..., None], probs, np.float32(np.nan))


class _Tables(NamedTuple):
    """Lookup tables by the place of a target, its number of steps above `low`: place = bin * 1024 + step <= `last`.

    shapes[step, offset - first_offset] is proportional to the probability of the bin `offset` bins above the target's.
    Its first and last columns are 0. scales[place] is the factor that makes the probabilities sum to 1; `scales` is
    None if all factors are 1.
    """

    low: np.float32
    high: np.float32
    inverse: np.float32  # steps per unit of the scalar
    last: int
    first_offset: int
    shapes: Float32[np.ndarray, "steps columns"]
    scales: Float32[np.ndarray, "places"] | None


@functools.lru_cache(maxsize=16)
def _tables(projection: kernels.Gaussian | kernels.OneHot | kernels.TwoHot) -> _Tables:
    """The tables, computed in float64 and rounded once to float32."""
    grid = projection.grid
    # With one-hot the upper edge belongs to the highest bin. With the other projections it is a separate place.
    last = grid.count * _STEPS - isinstance(projection, kernels.OneHot)
    below, above = (min(each, projection.num_bins) for each in reach(projection, np.float64))
    offsets = np.arange(-below - 1, above + 2, dtype=np.int32)
    fractions = np.arange(_STEPS)[:, None] / _STEPS
    shapes = projection.mass(offsets, np.int32(0), fractions, np.ones_like(fractions))
    shapes[:, [0, -1]] = 0
    scales = None
    if isinstance(projection, kernels.Gaussian):
        places = np.arange(last + 1, dtype=np.int32)
        scales = projection.scale(places // _STEPS, places % _STEPS / _STEPS).astype(np.float32)
    low, high, inverse = (np.float32(x) for x in (grid.low, grid.high, _STEPS / grid.width))
    return _Tables(low, high, inverse, last, -below - 1, shapes.astype(np.float32), scales)


def _check(head: Any) -> HLGauss | OneHot | TwoHot:
    if not isinstance(head, HLGauss | OneHot | TwoHot):
        raise TypeError(f"portable_encode: head must be an HLGauss, OneHot or TwoHot, not {head!r}")
    support = head.support
    if not support.is_uniform or support.scalar_transform != "identity" or support.num_bins > _MAX_BINS:
        raise ValueError(
            f"portable_encode: the support must have at most {_MAX_BINS:,} bins of one width and no scalar_transform, "
            f"not {support}"
        )
    return head
