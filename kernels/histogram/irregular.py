"""The projections of `projection` on bins of unequal widths.

A target is split into a bin and a fraction here too, so the formulas of the mass are the same. Two-hot divides a target
between the two nearest centers. `LocalGaussian` counts sigma in bins, so its width follows that of the bins. Only
`IrregularGaussian`, with one sigma in the units of the target, has its own formula.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real

from ..arrays import at_least_float32, clip, namespace
from .projection import Gaussian, OneHot, TwoHot, _erf


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells between increasing points, for bins of unequal width; `projection.Grid` has cells of equal width."""

    points: tuple[float, ...]
    width = 1.0  # sigma is counted in cells

    @property
    def low(self) -> float:
        return self.points[0]

    @property
    def high(self) -> float:
        return self.points[-1]

    @property
    def count(self) -> int:
        return len(self.points) - 1

    def split(self, targets: Real[ArrayLike, "*b"]) -> tuple[Int[Any, "*b"], Float[Any, "*b"]]:
        """The cell (int32, 0..count-1) and the position in it (0..1) of each target, which is clipped to the ends."""
        xp = namespace(targets)
        t = at_least_float32(targets, xp)
        number = t.dtype.type
        points, rest = (xp.asarray(part) for part in _in_two_parts(self.points, t.dtype.name))
        widths = xp.asarray(np.diff(self.points).astype(t.dtype))
        t = clip(t, points[0], points[-1])
        j = xp.searchsorted(points, t, side="right").astype(np.int32) - np.int32(1)
        j = xp.clip(j, np.int32(0), np.int32(self.count - 1))
        f = ((t - points[j]) - rest[j]) / widths[j]
        return j, clip(f, number(0), number(1))


@functools.lru_cache(maxsize=64)
def _in_two_parts(points: tuple[float, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The points rounded to the dtype, and the rounding errors."""
    exact = np.asarray(points, np.float64)
    rounded = exact.astype(dtype)
    return rounded, (exact - rounded).astype(dtype)


@dataclasses.dataclass(frozen=True)
class IrregularTwoHot(TwoHot):
    """`TwoHot` between given centers."""

    centers: tuple[float, ...]

    @classmethod
    def between(cls, centers: Sequence[float] | np.ndarray) -> "IrregularTwoHot":
        centers = tuple(map(float, np.asarray(centers)))
        return cls(centers[0], centers[-1], len(centers), centers)

    @functools.cached_property
    def grid(self) -> Any:
        return Cells(self.centers)


@dataclasses.dataclass(frozen=True)
class IrregularOneHot(OneHot):
    """`OneHot` in the bins between given edges."""

    edges: tuple[float, ...]

    @classmethod
    def between(cls, edges: Sequence[float] | np.ndarray) -> "IrregularOneHot":
        edges = tuple(map(float, np.asarray(edges)))
        return cls(edges[0], edges[-1], len(edges) - 1, edges)

    @functools.cached_property
    def grid(self) -> Any:
        return Cells(self.edges)


@dataclasses.dataclass(frozen=True)
class LocalGaussian(Gaussian):
    """`Gaussian` in the bins between given edges, with sigma counted in bins: it is proportional to their width."""

    edges: tuple[float, ...]

    @classmethod
    def between(cls, edges: Sequence[float] | np.ndarray, sigma: float) -> "LocalGaussian":
        edges = tuple(map(float, np.asarray(edges)))
        return cls(edges[0], edges[-1], len(edges) - 1, sigma, edges)

    @functools.cached_property
    def grid(self) -> Any:
        return Cells(self.edges)


@dataclasses.dataclass(frozen=True)
class IrregularGaussian(LocalGaussian):
    """`Gaussian` in the bins between given edges, with one sigma in the units of the target."""

    def encode(self, targets: Real[ArrayLike, "*b"]) -> Float[Any, "*b {self.num_bins}"]:
        """The histogram of each target: differences of the distribution function at the edges."""
        xp = namespace(targets)
        t = at_least_float32(targets, xp)
        number = t.dtype.type
        ones = (1,) * t.ndim
        edges, rest = (part.reshape((*ones, -1)) for part in _in_two_parts(self.edges, t.dtype.name))
        t = clip(t, edges[(0,) * edges.ndim], edges[(0,) * t.ndim + (-1,)])
        # The factor is limited, because for a tiny sigma it would be inf, and 0 * inf at an edge is NaN.
        factor = number(min(np.sqrt(0.5) / self.sigma, 1e30))
        below = _erf(((edges - t[..., None]) + rest) * factor)
        mass = below[..., 1:] - below[..., :-1]
        mass = xp.where(mass < 0, number(0), mass)
        return mass / (below[..., -1:] - below[..., :1])
