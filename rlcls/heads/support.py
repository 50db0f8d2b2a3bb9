"""The values that a categorical head can tell apart."""

import dataclasses
import functools
import numbers
from typing import Literal

import numpy as np
from jaxtyping import Float64

from ._arrays import check_finite

On = Literal["edges", "centers"]


@dataclasses.dataclass(frozen=True)
class Support:
    """`num_bins` bins of equal width, given by the edges of the outermost bins or by their centers.

    With on="edges" the bins fill [vmin, vmax] (HL-Gauss); with on="centers" the outermost centers are vmin
    and vmax, and the bins reach half a width beyond (two-hot, C51). The two do not share a grid: with -10, 10
    and 51 the widths are 0.392 and 0.4.
    """

    vmin: float
    vmax: float
    num_bins: int
    on: On = "edges"

    def __post_init__(self):
        for name in ("vmin", "vmax"):
            object.__setattr__(self, name, check_finite(f"support: {name}", getattr(self, name)))
        if not isinstance(self.num_bins, numbers.Integral) or isinstance(self.num_bins, bool):
            raise TypeError(f"support: num_bins must be an integer, not {self.num_bins!r}")
        object.__setattr__(self, "num_bins", int(self.num_bins))
        if self.vmin >= self.vmax:
            raise ValueError(f"support: vmin ({self.vmin}) must be below vmax ({self.vmax})")
        if self.num_bins < 2:
            raise ValueError(f"support: num_bins must be at least 2, not {self.num_bins}")
        if self.on not in ("edges", "centers"):
            raise ValueError(f"support: on must be 'edges' or 'centers', not {self.on!r}")

    @classmethod
    def uniform(cls, vmin: float, vmax: float, num_bins: int, *, on: On = "edges") -> "Support":
        """Bins of equal width.

        Raises:
          ValueError: vmin is not below vmax, or there are fewer than 2 bins.
        """
        return cls(vmin, vmax, num_bins, on)

    @property
    def width(self) -> float:
        """The width of a bin, which is also the distance between centers."""
        return (self.vmax - self.vmin) / (self.num_bins if self.on == "edges" else self.num_bins - 1)

    @property
    def _overhang(self) -> float:
        return 0.0 if self.on == "edges" else self.width / 2

    @property
    def low_edge(self) -> float:
        return self.vmin - self._overhang

    @property
    def high_edge(self) -> float:
        return self.vmax + self._overhang

    @functools.cached_property
    def edges(self) -> Float64[np.ndarray, "{self.num_bins}+1"]:
        return _spaced(self.low_edge, self.high_edge, self.num_bins)

    @functools.cached_property
    def centers(self) -> Float64[np.ndarray, "{self.num_bins}"]:
        inset = self.width / 2 - self._overhang
        return _spaced(self.vmin + inset, self.vmax - inset, self.num_bins - 1)


def _spaced(first: float, last: float, intervals: int) -> Float64[np.ndarray, " n"]:
    """Evenly spaced, and mirror-symmetric to the last bit when the ends are: np.linspace is not."""
    steps = np.arange(-intervals, intervals + 1, 2) / intervals
    values = (first + last) / 2 + (last - first) / 2 * steps
    values.flags.writeable = False
    return values
