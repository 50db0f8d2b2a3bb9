"""Projections: maps from a scalar target to a histogram.

A target t is split into a bin j and a fraction f with t = low + (j + f) * width, without the rounding error of
low + j * width in float32. The mass of bin i is a function of (i - j) - f, where i - j is an exact integer. The split
also clips targets to the grid. Clipping at float32(high) instead would change a cross-entropy by 1e-3 with 131,072
bins, because float32(high) differs from high. A NaN target affects its own row only.

Every method takes arrays of NumPy or JAX and returns arrays of the same kind.
"""

import abc
import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Real

from ..arrays import at_least_float32, clip, namespace
from .mixture import add_pairs

# Width of a bin in standard deviations. Up to this width, float32 masses are computed from the density; the mass of
# wider bins is a difference of two error functions.
_NARROW = 0.1


@dataclasses.dataclass(frozen=True)
class Grid:
    """`count` cells of equal width between two ends; hashable, so that it can be a static argument of a jit."""

    low: float
    high: float
    count: int

    @functools.cached_property
    def width(self) -> float:
        return (self.high - self.low) / self.count

    def split(self, targets: Real[ArrayLike, "*b"]) -> tuple[Int[Any, "*b"], Float[Any, "*b"]]:
        """The cell (int32, 0..count-1) and the position in it (0..1) of each target, which is clipped to the grid.

        cell + fraction is accurate to about 1e-7 cells in float32 and 1e-16 in float64 for any number of cells. The
        fraction is 1 at the upper end. A NaN target has cell 0 and fraction NaN.
        """
        xp = namespace(targets)
        t = at_least_float32(targets, xp)
        number = t.dtype.type
        (low, low_rest), (width_high, width_middle, width_low) = _constants(self, t.dtype.name)
        # This first, wide clip keeps infinities out of the differences below.
        span = self.high - self.low
        t = clip(t, number(self.low - span), number(self.high + span))
        # offset + error = t - low, exactly (Knuth's TwoDiff).
        offset = t - low
        bb = offset - t
        error = ((t - (offset - bb)) - (low + bb)) - low_rest
        inverse = number(1 / self.width)
        guess = clip(xp.floor(offset * inverse), number(0), number(self.count - 1))
        j = xp.where(xp.isnan(guess), number(0), guess).astype(np.int32)
        # The products of j_high or j_low and a part of the width are exact, so fused multiply-adds give the same bits.
        j_high, j_low = (j & ~0xFFF).astype(t.dtype), (j & 0xFFF).astype(t.dtype)
        rest = (offset - j_high * width_high) - j_low * width_high
        rest = (rest - j_high * width_middle) - j_low * width_middle
        f = (rest + (error - j.astype(t.dtype) * width_low)) * inverse
        # `guess` is rounded, so f can lie just outside [0, 1).
        step = xp.where(f < 0, np.int32(-1), xp.where(f >= 1, np.int32(1), np.int32(0)))
        moved = xp.clip(j + step, np.int32(0), np.int32(self.count - 1))
        return moved, clip(f - (moved - j).astype(t.dtype), number(0), number(1))


@functools.lru_cache(maxsize=256)
def _constants(grid: Grid, dtype: str) -> tuple[tuple[Any, Any], tuple[Any, Any, Any]]:
    """`low` as a sum of two numbers of the dtype, and the width as a sum of three.

    The product of a 12-bit integer and one of the first two parts of the width is exact.
    """
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


class Projection(abc.ABC):
    """The histogram of a scalar target over `num_bins` bins; hashable."""

    num_bins: int

    @property
    @abc.abstractmethod
    def grid(self) -> Any:
        """The cells in which `split` finds a target: the bins, or the intervals between centers."""

    @abc.abstractmethod
    def scale(self, bins: Int[ArrayLike, "*b"], fractions: Float[ArrayLike, "*b"]) -> Float[Any, "*b"]:
        """The argument `scale` of `mass` for each target."""

    @abc.abstractmethod
    def mass(self, columns: Any, bins: Any, fractions: Any, scale: Any) -> Any:
        """The mass of the bins numbered `columns`, from the results of `split` and `scale`; arguments broadcast."""

    def split(self, targets: Real[ArrayLike, "*b"]) -> tuple[Int[Any, "*b"], Float[Any, "*b"]]:
        """The cell of the grid (int32) and the position in it (0..1) of each target, which is clipped to the ends."""
        return self.grid.split(targets)

    def encode(self, targets: Real[ArrayLike, "*b"]) -> Float[Any, "*b {self.num_bins}"]:
        """The histogram of each target."""
        bins, fractions = self.split(targets)
        scale = self.scale(bins, fractions)
        columns = np.arange(self.num_bins, dtype=np.int32).reshape((1,) * fractions.ndim + (-1,))
        return self.mass(columns, bins[..., None], fractions[..., None], scale[..., None])


@dataclasses.dataclass(frozen=True)
class Gaussian(Projection):
    """The mass of a normal distribution around the target t in each of `num_bins` bins, renormalised.

    p_i = (Phi((e_{i+1} - t) / sigma) - Phi((e_i - t) / sigma)) / (Phi((e_k - t) / sigma) - Phi((e_0 - t) / sigma))
    with edges e_0 = low_edge, ..., e_k = high_edge.

    Source: Imani & White 2018; Farebrother et al. 2024, section 3.1 and listing 1.
    """

    low_edge: float
    high_edge: float
    num_bins: int
    sigma: float

    def __post_init__(self) -> None:
        _check(self.low_edge, self.high_edge, self.num_bins)
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma must be positive and finite, not {self.sigma}")

    @functools.cached_property
    def grid(self) -> Grid:
        return Grid(self.low_edge, self.high_edge, self.num_bins)

    def scale(self, bins: Int[ArrayLike, "*b"], fractions: Float[ArrayLike, "*b"]) -> Float[Any, "*b"]:
        """1 / (2 * the mass of the normal distribution between the outermost edges)."""
        s = _erf_scale(self, fractions.dtype)
        above = (self.num_bins - bins).astype(fractions.dtype) - fractions
        below = (-bins).astype(fractions.dtype) - fractions
        return 1 / (_erf(above * s) - _erf(below * s))

    def mass(self, columns: Any, bins: Any, fractions: Any, scale: Any, erf: Any = None) -> Any:
        """`Projection.mass`. A compiler without an error function passes its own as `erf`."""
        erf = erf or _erf
        xp, dtype = namespace(fractions), fractions.dtype
        d = (columns - bins).astype(dtype) - fractions
        number = dtype.type
        relative = self.grid.width / self.sigma
        if relative <= _NARROW and dtype != np.float64:
            # Two-point Gauss-Legendre quadrature of the density. A difference of two almost equal erfs loses digits.
            s = number(relative * math.sqrt(0.5))
            a, b = number(0.5 - math.sqrt(1 / 12)), number(0.5 + math.sqrt(1 / 12))
            density = xp.exp(-(((d + a) * s) ** 2)) + xp.exp(-(((d + b) * s) ** 2))
            return number(relative / math.sqrt(2 * math.pi)) * scale * density
        s = _erf_scale(self, dtype)
        mass = scale * (erf((d + number(1)) * s) - erf(d * s))
        return xp.where(mass < 0, number(0), mass)


@dataclasses.dataclass(frozen=True)
class TwoHot(Projection):
    """The target's mass divided between the two nearest of `num_bins` centers, so that the mean is the target.

    p_i = max(0, 1 - |t - c_i| / width) with centers c_1 = first_center, ..., c_k = last_center.

    Source: Bellemare et al. 2017, equation 7 (for one atom); Farebrother et al. 2024, section 3.1.
    """

    first_center: float
    last_center: float
    num_bins: int

    def __post_init__(self) -> None:
        _check(self.first_center, self.last_center, self.num_bins)

    @functools.cached_property
    def grid(self) -> Grid:
        return Grid(self.first_center, self.last_center, self.num_bins - 1)

    def scale(self, bins: Int[ArrayLike, "*b"], fractions: Float[ArrayLike, "*b"]) -> Float[Any, "*b"]:
        """Ones, because the mass sums to 1."""
        return namespace(fractions).ones_like(fractions)

    def mass(self, columns: Any, bins: Any, fractions: Any, scale: Any) -> Any:
        dtype = fractions.dtype
        d = (columns - bins).astype(dtype) - fractions
        mass = dtype.type(1) - abs(d)
        return namespace(fractions).where(mass < 0, dtype.type(0), mass)

    def project(
        self, probs: Float[ArrayLike, "*b n"], targets: Real[ArrayLike, "*b n"]
    ) -> Float[Any, "*b k"]:
        """The histogram of the mass `probs` at `targets`; its mean is that of the clipped targets.

        Source: Bellemare et al. 2017, equation 7.
        """
        if isinstance(probs, jax.Array) or isinstance(targets, jax.Array):
            targets = jnp.asarray(targets)
        bins, fractions = self.split(targets)
        probs = namespace(fractions).asarray(probs)
        lower = probs * (1 - fractions)
        return add_pairs(bins, lower, (probs * fractions).astype(lower.dtype), self.num_bins)


@dataclasses.dataclass(frozen=True)
class OneHot(Projection):
    """Mass 1 in the bin that contains the target, 0 elsewhere."""

    low_edge: float
    high_edge: float
    num_bins: int

    def __post_init__(self) -> None:
        _check(self.low_edge, self.high_edge, self.num_bins)

    @functools.cached_property
    def grid(self) -> Grid:
        return Grid(self.low_edge, self.high_edge, self.num_bins)

    def scale(self, bins: Int[ArrayLike, "*b"], fractions: Float[ArrayLike, "*b"]) -> Float[Any, "*b"]:
        """Ones, or NaN for a NaN target."""
        return namespace(fractions).where(fractions >= 0, fractions.dtype.type(1), fractions)

    def mass(self, columns: Any, bins: Any, fractions: Any, scale: Any) -> Any:
        return (columns == bins).astype(fractions.dtype) * scale


def place(
    projection: Projection, targets: Float[Array, " b"], dtype: DTypeLike
) -> tuple[Int[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
    """The arguments of `projection.mass` for each target: its bin (int32), and its fraction and scale in `dtype`.

    The targets are split in their own dtype.
    """
    bins, fractions = projection.split(targets)
    fractions = fractions.astype(dtype)
    return bins, fractions, projection.scale(bins, fractions)


def reach(projection: Projection, dtype: DTypeLike) -> tuple[int, int]:
    """How many bins below and above the target's bin have a mass that differs from 0 in `dtype`.

    A Gaussian's mass beyond six standard deviations is below 2e-9, and beyond nine below 1e-18.
    """
    if not isinstance(projection, Gaussian):
        return 0, 0 if isinstance(projection, OneHot) else 1
    deviations = 9 if np.dtype(dtype) == np.float64 else 6
    below = math.ceil(deviations * projection.sigma / projection.grid.width)
    return below, below + 1  # the fraction moves the target up by at most one bin


def _check(low: float, high: float, num_bins: int) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"a projection needs two finite ends, the first below the second, not {low} and {high}"
        )
    if num_bins < 2:
        raise ValueError(f"num_bins must be at least 2, not {num_bins}")


def _erf(x: Any) -> Any:
    if isinstance(x, jax.Array):
        return lax.erf(x)
    from scipy.special import erf  # `import jax` does not load scipy.special

    return erf(x)


def _erf_scale(projection: Gaussian, dtype: Any) -> Any:
    # The factor is limited, because for a tiny sigma it would be inf, and 0 * inf at an edge is NaN.
    return dtype.type(min(projection.grid.width / projection.sigma * math.sqrt(0.5), 1e30))
