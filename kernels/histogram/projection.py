"""How a scalar target becomes a histogram: its place on the grid, and the mass each bin gets.

A target t is split into a bin j and a fraction f, t = low + (j + f) * width, without the rounding that low +
j * width in float32 would bring; every mass is then a function of (i - j) - f, whose first part is an exact
integer. Targets beyond the grid are clipped after the split: float32(high) is not high, and at 131,072 bins
that difference alone would cost 1e-3 of a cross-entropy. A NaN stays in its own row.

Everything here takes numpy arrays as well as JAX's, and gives back what it took.
"""

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real

from .mixture import add_pairs

# Bins wider than this many standard deviations need the difference of two erf's; narrower ones, in float32,
# the density.
_NARROW = 0.1


@dataclasses.dataclass(frozen=True)
class Grid:
    """`count` cells of equal width between two ends; hashable, so it may be a static argument of a jit."""

    low: float
    high: float
    count: int

    @functools.cached_property
    def width(self) -> float:
        return (self.high - self.low) / self.count

    def split(self, targets: Real[ArrayLike, "*b"]) -> tuple[Int[Any, "*b"], Float[Any, "*b"]]:
        """The cell (int32, 0..count-1) and the fraction of it (0..1) at each target, clipped to the grid.

        The place on the grid, cell + fraction, is right to about 1e-7 cells in float32 and 1e-16 in float64
        whatever the number of cells. At the upper end the fraction is 1. A NaN target has cell 0 and fraction
        NaN.
        """
        xp, t = _floating(targets)
        number = t.dtype.type
        (low, low_rest), (width_high, width_middle, width_low) = _constants(self, t.dtype.name)
        # Far outside everything is clipped alike; doing it first keeps infinities out of the differences
        # below.
        span = self.high - self.low
        t = _clip(xp, t, number(self.low - span), number(self.high + span))
        # offset + error = t - low, exactly (Knuth's TwoDiff).
        offset = t - low
        bb = offset - t
        error = ((t - (offset - bb)) - (low + bb)) - low_rest
        inverse = number(1 / self.width)
        guess = _clip(xp, xp.floor(offset * inverse), number(0), number(self.count - 1))
        j = xp.where(xp.isnan(guess), number(0), guess).astype(np.int32)
        # Halves of j times parts of the width are exact products, so fused multiply-adds cannot change them.
        j_high, j_low = (j & ~0xFFF).astype(t.dtype), (j & 0xFFF).astype(t.dtype)
        rest = (offset - j_high * width_high) - j_low * width_high
        rest = (rest - j_high * width_middle) - j_low * width_middle
        f = (rest + (error - j.astype(t.dtype) * width_low)) * inverse
        # The guess was rounded, so f may lie just outside its cell.
        step = xp.where(f < 0, np.int32(-1), xp.where(f >= 1, np.int32(1), np.int32(0)))
        moved = xp.clip(j + step, np.int32(0), np.int32(self.count - 1))
        return moved, _clip(xp, f - (moved - j).astype(t.dtype), number(0), number(1))


@functools.lru_cache(maxsize=256)
def _constants(grid: Grid, dtype: str) -> tuple[tuple[Any, Any], tuple[Any, Any, Any]]:
    """low as two numbers of the dtype; the width as three, the first two exact times 12-bit integers."""
    number = np.dtype(dtype).type
    low = number(grid.low)
    low_rest = number(grid.low - float(low))
    width = (Fraction(grid.high) - Fraction(grid.low)) / grid.count
    bits = np.finfo(dtype).nmant + 1 - 12
    parts = []
    for _ in range(2):
        unit = Fraction(2) ** (math.frexp(float(width))[1] - bits)
        parts.append(width // unit * unit)
        width -= parts[-1]
    return (low, low_rest), (number(float(parts[0])), number(float(parts[1])), number(float(width)))


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The mass that a normal distribution around the target puts on each of `num_bins` bins.

    What lies beyond the edges is cut off and the rest renormalised.

    Source: Imani & White 2018; Farebrother et al. 2024, section 3.1 and listing 1.
    """

    low_edge: float
    high_edge: float
    num_bins: int
    sigma: float

    def __post_init__(self):
        _check(self.low_edge, self.high_edge, self.num_bins)
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma must be positive and finite, not {self.sigma}")

    @functools.cached_property
    def grid(self) -> Grid:
        return Grid(self.low_edge, self.high_edge, self.num_bins)

    def split(self, targets: Real[ArrayLike, "*b"]) -> tuple[Int[Any, "*b"], Float[Any, "*b"]]:
        """See `Grid.split`; the cells are the bins."""
        return self.grid.split(targets)

    def scale(self, bins: Int[ArrayLike, "*b"], fractions: Float[ArrayLike, "*b"]) -> Float[Any, "*b"]:
        """What `mass` multiplies by, once per target: one over twice the mass inside the edges."""
        s = _erf_scale(self, fractions.dtype)
        above = (self.num_bins - bins).astype(fractions.dtype) - fractions
        below = (-bins).astype(fractions.dtype) - fractions
        return 1 / (_erf(above * s) - _erf(below * s))

    def mass(self, columns: Any, bins: Any, fractions: Any, scale: Any, erf: Any = None) -> Any:
        """The mass of the bins numbered `columns`, given what `split` and `scale` gave; all broadcast.

        `erf` stands in for the error function where a compiler knows none.
        """
        erf = erf or _erf
        xp, dtype = _namespace(fractions), fractions.dtype
        d = (columns - bins).astype(dtype) - fractions
        number = dtype.type
        relative = self.grid.width / self.sigma
        if relative <= _NARROW and dtype != np.float64:
            # Two-point Gauss-Legendre: the difference of two nearly equal erf's would have lost its digits.
            s = number(relative * math.sqrt(0.5))
            a, b = number(0.5 - math.sqrt(1 / 12)), number(0.5 + math.sqrt(1 / 12))
            density = xp.exp(-(((d + a) * s) ** 2)) + xp.exp(-(((d + b) * s) ** 2))
            return number(relative / math.sqrt(2 * math.pi)) * scale * density
        s = _erf_scale(self, dtype)
        mass = scale * (erf((d + number(1)) * s) - erf(d * s))
        return xp.where(mass < 0, number(0), mass)

    def encode(self, targets: Real[ArrayLike, "*b"]) -> Float[Any, "*b {self.num_bins}"]:
        """The histogram of each target."""
        return _encode(self, targets)


@dataclasses.dataclass(frozen=True)
class TwoHot:
    """The target's mass shared between the two nearest of `num_bins` centers, so that the mean is the target.

    Source: Bellemare et al. 2017, equation 7 (for one atom); Farebrother et al. 2024, section 3.1.
    """

    first_center: float
    last_center: float
    num_bins: int

    def __post_init__(self):
        _check(self.first_center, self.last_center, self.num_bins)

    @functools.cached_property
    def grid(self) -> Grid:
        return Grid(self.first_center, self.last_center, self.num_bins - 1)

    def split(self, targets: Real[ArrayLike, "*b"]) -> tuple[Int[Any, "*b"], Float[Any, "*b"]]:
        """See `Grid.split`; the cells are the gaps between centers."""
        return self.grid.split(targets)

    def scale(self, bins: Int[ArrayLike, "*b"], fractions: Float[ArrayLike, "*b"]) -> Float[Any, "*b"]:
        """Ones: nothing is cut off."""
        return _namespace(fractions).ones_like(fractions)

    def mass(self, columns: Any, bins: Any, fractions: Any, scale: Any) -> Any:
        """The mass of the bins numbered `columns`, given what `split` and `scale` gave; all broadcast."""
        dtype = fractions.dtype
        d = (columns - bins).astype(dtype) - fractions
        mass = dtype.type(1) - abs(d)
        return _namespace(fractions).where(mass < 0, dtype.type(0), mass)

    def encode(self, targets: Real[ArrayLike, "*b"]) -> Float[Any, "*b {self.num_bins}"]:
        """The histogram of each target."""
        return _encode(self, targets)

    def project(
        self, probs: Float[ArrayLike, "*b n"], targets: Real[ArrayLike, "*b n"]
    ) -> Float[Any, "*b k"]:
        """The histogram of the mass `probs` at `targets`; it keeps the mean of what lies inside the centers.

        Source: Bellemare et al. 2017, equation 7.
        """
        if isinstance(probs, jax.Array) or isinstance(targets, jax.Array):
            targets = jnp.asarray(targets)
        bins, fractions = self.split(targets)
        probs = _namespace(fractions).asarray(probs)
        lower = probs * (1 - fractions)
        return add_pairs(bins, lower, (probs * fractions).astype(lower.dtype), self.num_bins)


@dataclasses.dataclass(frozen=True)
class OneHot:
    """All of the target's mass on the bin that it falls in."""

    low_edge: float
    high_edge: float
    num_bins: int

    def __post_init__(self):
        _check(self.low_edge, self.high_edge, self.num_bins)

    @functools.cached_property
    def grid(self) -> Grid:
        return Grid(self.low_edge, self.high_edge, self.num_bins)

    def split(self, targets: Real[ArrayLike, "*b"]) -> tuple[Int[Any, "*b"], Float[Any, "*b"]]:
        """See `Grid.split`; the cells are the bins."""
        return self.grid.split(targets)

    def scale(self, bins: Int[ArrayLike, "*b"], fractions: Float[ArrayLike, "*b"]) -> Float[Any, "*b"]:
        """Ones, and NaN for a NaN."""
        return _namespace(fractions).where(fractions >= 0, fractions.dtype.type(1), fractions)

    def mass(self, columns: Any, bins: Any, fractions: Any, scale: Any) -> Any:
        """The mass of the bins numbered `columns`, given what `split` and `scale` gave; all broadcast."""
        return (columns == bins).astype(fractions.dtype) * scale

    def encode(self, targets: Real[ArrayLike, "*b"]) -> Float[Any, "*b {self.num_bins}"]:
        """The histogram of each target."""
        return _encode(self, targets)


def _check(low: float, high: float, num_bins: int) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"a projection needs finite ends, the first below the second, not {low} and {high}")
    if num_bins < 2:
        raise ValueError(f"num_bins must be at least 2, not {num_bins}")


def _encode(projection: Any, targets: ArrayLike) -> Any:
    bins, fractions = projection.split(targets)
    scale = projection.scale(bins, fractions)
    columns = np.arange(projection.num_bins, dtype=np.int32).reshape((1,) * fractions.ndim + (-1,))
    return projection.mass(columns, bins[..., None], fractions[..., None], scale[..., None])


def _floating(x: ArrayLike) -> tuple[Any, Any]:
    """The namespace x belongs to, and x in at least float32 there; Python numbers count as JAX's."""
    xp = _namespace(x)
    x = xp.asarray(x)
    return xp, x.astype(xp.promote_types(x.dtype, np.float32))


def _clip(xp: Any, x: Any, low: Any, high: Any) -> Any:
    # Not xp.clip: on the CPU, XLA's minimum and maximum may give back the other operand where one is a NaN.
    return xp.where(x < low, low, xp.where(x > high, high, x))


def _namespace(x: ArrayLike) -> Any:
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp


def _erf(x: Any) -> Any:
    if isinstance(x, jax.Array):
        return lax.erf(x)
    from scipy.special import erf  # JAX depends on scipy, but does not load it

    return erf(x)


def _erf_scale(projection: Gaussian, dtype: Any) -> Any:
    # A finite factor: at an edge of the grid 0 * inf would make a NaN of a sigma that is nearly 0.
    return dtype.type(min(projection.grid.width / projection.sigma * math.sqrt(0.5), 1e30))
