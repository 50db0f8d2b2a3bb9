"""Histograms of targets with the same bits from NumPy as on every device, for encoding in a data loader.

`head.encode` gives the same histograms up to rounding: XLA may fuse a product and a sum into one rounding, and its
error function is not SciPy's. Here the only arithmetic on targets is one difference, one product and one rounding to an
integer, which nothing fuses. The integer selects entries of tables, and the product of two entries is a probability.
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

_STEPS = 1024  # places in a bin
_MOST = 2**24 // _STEPS  # bins; float32 represents every place in them


def portable_encode(head: HLGauss | OneHot | TwoHot, scalars: Real[ArrayLike, "*b"]) -> Float32[Any, "*b k"]:
    """`head.encode` of scalars rounded to 1/1024 of a bin: the same bits from NumPy as on every device.

    NumPy in, NumPy out; JAX in, JAX out. A scalar is rounded to float32, clipped to the support, and rounded to 1/1024
    of a bin, or to the precision of float32 where that is coarser. The decoded value moves by as much, usually by less
    than 0.0005 bins. The row of a NaN is NaN. The bits are equal where differences and products of float32 are rounded
    as in IEEE 754.

    Raises:
      TypeError: the head is another one, or the scalars are not real.
      ValueError: the bins are of unequal width or more than 16,384, or the support has a scalar_transform.

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
    """A place is a number of steps above `low`: place = bin * 1024 + step, at most `last`.

    shapes[step, offset - first_offset] is proportional to the probability of the bin `offset` bins above the target's.
    The columns at both ends are 0. scales[place] is the factor that makes the sum 1, None where the factor is 1.
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
    """The tables, computed in float64 and rounded once."""
    grid = projection.grid
    # The upper edge belongs to the highest of the one-hot bins. For the others it is a place of its own.
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
    if not support.is_uniform or support.scalar_transform != "identity" or support.num_bins > _MOST:
        raise ValueError(
            f"portable_encode: the support must have at most {_MOST:,} bins of one width and no scalar_transform, "
            f"not {support}"
        )
    return head
