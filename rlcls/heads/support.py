"""The bins of a categorical head."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from rlcls._errors import check_choice

from ._arrays import MOST_OUTPUTS, check_finite, check_integer, check_positive
from .transforms import TRANSFORMS, Name

On = Literal["edges", "centers"]


@dataclasses.dataclass(frozen=True)
class Support:
    """`num_bins` bins between vmin and vmax, which are outermost edges or outermost centers.

    With on="edges" the bins fill [vmin, vmax] (HL-Gauss). With on="centers" the outermost centers are vmin and vmax,
    and the bins extend half a width beyond (two-hot, C51). The two grids differ: with -10, 10 and 51 the widths are
    0.392 and 0.4.

    The bins have equal width unless one of two transforms squashes the range; vmin and vmax are then squashed values.
    The transforms differ in where the mean is taken:

    * `scalar_transform` squashes the scalar and leaves the bins equal. A target is squashed before it is encoded, and a
      value is the inverse transform of the mean. This is biased, because the mean of squashed returns differs from the
      squashed mean, but every error is of the order of a bin (MuZero, TD-MPC2).
    * `bin_transform` spaces the bins. They are equal in the squashed range; their centers are the inverse transform, in
      the units of the scalar, and the mean is taken there. This is unbiased (DreamerV3).

    `uniform`, `symexp` and `arbitrary` make supports.

    >>> Support.uniform(-1, 1, 4).edges
    array([-1. , -0.5,  0. ,  0.5,  1. ])
    >>> Support.uniform(-1, 1, 5, on="centers").centers
    array([-1. , -0.5,  0. ,  0.5,  1. ])
    """

    vmin: float
    vmax: float
    num_bins: int
    on: On = "edges"
    scalar_transform: Name = "identity"
    bin_transform: Name = "identity"
    points: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("vmin", "vmax"):
            object.__setattr__(self, name, check_finite(f"support: {name}", getattr(self, name)))
        if self.vmin >= self.vmax:
            raise ValueError(f"support: vmin ({self.vmin}) must be below vmax ({self.vmax})")
        object.__setattr__(
            self, "num_bins", check_integer("support: num_bins", self.num_bins, 2, MOST_OUTPUTS)
        )
        check_choice("support: on", self.on, ("edges", "centers"))
        check_choice("support: scalar_transform", self.scalar_transform, TRANSFORMS)
        check_choice("support: bin_transform", self.bin_transform, TRANSFORMS)
        if self.points is not None:
            object.__setattr__(self, "points", tuple(self.points))
            self._check_points()
        self._check_range()

    @classmethod
    def uniform(
        cls,
        vmin: float,
        vmax: float,
        num_bins: int,
        *,
        on: On = "edges",
        scalar_transform: Name = "identity",
        bin_transform: Name = "identity",
    ) -> "Support":
        """Bins of equal width, in the squashed range if there is a transform.

        Raises:
          ValueError: vmin is not below vmax, there are fewer than 2 bins, or a transform is unknown.
        """
        return cls(vmin, vmax, num_bins, on, scalar_transform, bin_transform)

    @classmethod
    def symexp(cls, vmin: float, vmax: float, num_bins: int, *, on: On = "centers") -> "Support":
        """Bins at symexp of evenly spaced points from vmin to vmax. Bins are narrow near 0 and grow with their value.

        Source: Hafner et al. 2023, equation 10, with vmin = -20, vmax = 20 and 255 bins.
        """
        return cls.uniform(vmin, vmax, num_bins, on=on, bin_transform="symlog")

    @classmethod
    def arbitrary(
        cls, points: Sequence[float] | np.ndarray, *, on: On = "edges", scalar_transform: Name = "identity"
    ) -> "Support":
        """Bins whose edges are the points, or with on="centers" whose centers are the points.

        Each center is halfway between two edges. With on="centers", each inner edge is halfway between two centers.

        Raises:
          ValueError: the points do not increase, or there are fewer than 2 bins.
        """
        shape = np.shape(points)
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError(f"support: points must be at least 2 numbers in a row, not of shape {shape}")
        points = tuple(check_finite("support: points", point) for point in np.asarray(points).tolist())
        num_bins = len(points) - 1 if on == "edges" else len(points)
        return cls(points[0], points[-1], num_bins, on, scalar_transform, "identity", points)

    def widen(self, sigma_ratio: float = 0.75, *, sigmas: float = 3.0) -> "Support":
        """The same number of wider bins, whose outermost edges lie `sigmas` standard deviations beyond vmin and vmax.

        HL-Gauss cuts off the mass beyond an edge. At a ratio of 0.75 this changes a decoded target by 0.69 bins at the
        edge, and by 0.25, 0.047 and 0.004 bins at one, two and three standard deviations from the edge.

        Raises:
          ValueError: there are too few bins for the margins, or the bins are arbitrary.
        """
        margin = check_positive("widen: sigma_ratio", sigma_ratio) * check_positive("widen: sigmas", sigmas)
        if self.points is not None:
            raise ValueError("widen: arbitrary bins have no common width; add bins with extend")
        if self.num_bins <= 2 * margin:
            raise ValueError(f"widen: num_bins must be above {2 * margin:g}, not {self.num_bins}")
        width = (self.vmax - self.vmin) / (self.num_bins - 2 * margin)
        inset = 0.0 if self.on == "edges" else width / 2
        outset = margin * width - inset
        return dataclasses.replace(self, vmin=self.vmin - outset, vmax=self.vmax + outset)

    def extend(self, low_bins: int, high_bins: int) -> "Support":
        """The same bins, with `low_bins` more below and `high_bins` more above.

        `heads.pad_outputs` adds the new bins to a trained output layer. A jitted function that takes the head as a
        static argument is compiled again.
        """
        low_bins = check_integer("extend: low_bins", low_bins, 0)
        high_bins = check_integer("extend: high_bins", high_bins, 0)
        if self.points is not None:
            low, high = self.points[1] - self.points[0], self.points[-1] - self.points[-2]
            below = tuple(self.points[0] - low * i for i in range(low_bins, 0, -1))
            above = tuple(self.points[-1] + high * i for i in range(1, high_bins + 1))
            points = below + self.points + above
            return Support.arbitrary(points, on=self.on, scalar_transform=self.scalar_transform)
        return dataclasses.replace(
            self,
            vmin=self.vmin - low_bins * self.width,
            vmax=self.vmax + high_bins * self.width,
            num_bins=self.num_bins + low_bins + high_bins,
        )

    @property
    def is_uniform(self) -> bool:
        """Whether all bins have one width."""
        return self.points is None and self.bin_transform == "identity"

    @property
    def width(self) -> float:
        """The width of a bin before `bin_transform`, which is also the distance between centers."""
        if self.points is not None:
            raise ValueError("arbitrary bins have no common width")
        return (self.vmax - self.vmin) / (self.num_bins if self.on == "edges" else self.num_bins - 1)

    @property
    def low_edge(self) -> float:
        """The lowest edge."""
        return float(self.edges[0])

    @property
    def high_edge(self) -> float:
        """The highest edge."""
        return float(self.edges[-1])

    @functools.cached_property
    def edges(self) -> Float64[np.ndarray, "{self.num_bins}+1"]:
        """The edges of the bins, squashed if there is a scalar_transform."""
        if self.points is not None:
            return _read_only(self.points if self.on == "edges" else _edges_around(self.points))
        overhang = 0.0 if self.on == "edges" else self.width / 2
        return self._spread(_spaced(self.vmin - overhang, self.vmax + overhang, self.num_bins))

    @functools.cached_property
    def centers(self) -> Float64[np.ndarray, "{self.num_bins}"]:
        """The centers of the bins, squashed if there is a scalar_transform."""
        if self.is_uniform or (self.points is None and self.on == "centers"):
            inset = self.width / 2 if self.on == "edges" else 0.0
            return self._spread(_spaced(self.vmin + inset, self.vmax - inset, self.num_bins - 1))
        if self.points is not None and self.on == "centers":
            return _read_only(self.points)
        return _read_only((self.edges[1:] + self.edges[:-1]) / 2)

    @functools.cached_property
    def values(self) -> Float64[np.ndarray, "{self.num_bins}"]:
        """The values of the centers, in the units of the scalar."""
        return _read_only(self.unsquash(self.centers))

    def squash(self, scalars: Any) -> Any:
        """The `scalar_transform` of the scalars, which brings them into the range of the bins."""
        return TRANSFORMS[self.scalar_transform].forward(scalars)

    def unsquash(self, scalars: Any) -> Any:
        """The inverse of `squash`."""
        return TRANSFORMS[self.scalar_transform].inverse(scalars)

    def to_dict(self) -> dict[str, Any]:
        """The options with which `heads.make` makes this support."""
        options = dataclasses.asdict(self)
        if self.points is not None:
            options = {"points": list(self.points), "on": self.on, "scalar_transform": self.scalar_transform}
        defaults = {"scalar_transform": "identity", "bin_transform": "identity", "points": None}
        return {name: x for name, x in options.items() if name not in defaults or x != defaults[name]}

    def _spread(self, spaced: np.ndarray) -> np.ndarray:
        return _read_only(TRANSFORMS[self.bin_transform].inverse(spaced))

    def _check_points(self) -> None:
        if self.bin_transform != "identity":
            raise ValueError("support: bin_transform spaces equal bins; give either it or points")
        points = np.asarray(self.points)
        steps = np.diff(points)
        if not (steps > 0).all():
            first = int(np.argmin(steps > 0))
            raise ValueError(
                f"support: points must increase, but {points[first + 1]} follows {points[first]}"
            )
        count = self.num_bins + (self.on == "edges")
        if len(points) != count or (self.vmin, self.vmax) != (points[0], points[-1]):
            raise ValueError("support: points must be num_bins (+ 1 edges) from vmin to vmax; use arbitrary")

    def _check_range(self) -> None:
        # An infinite center would make means NaN. The likely mistake is a vmin or vmax that is not squashed.
        with np.errstate(over="ignore"):
            low, high = self.unsquash(self.edges[[0, -1]])
        if max(-low, high) >= np.finfo(np.float32).max:
            names = {self.scalar_transform, self.bin_transform} - {"identity"}
            squashed = f": they are {' and '.join(sorted(names))} of the scalar" if names else ""
            raise ValueError(
                f"support: vmin ({self.vmin}) and vmax ({self.vmax}) stand for {low:g} and {high:g}, "
                f"beyond float32{squashed}"
            )


def _spaced(first: float, last: float, intervals: int) -> Float64[np.ndarray, " n"]:
    """Evenly spaced numbers. If first is -last they are symmetric to the last bit, unlike those of np.linspace."""
    steps = np.arange(-intervals, intervals + 1, 2) / intervals
    return _read_only((first + last) / 2 + (last - first) / 2 * steps)


def _edges_around(centers: Sequence[float]) -> Float64[np.ndarray, " n"]:
    """The edges halfway between centers, and one edge beyond each outermost center."""
    middles = np.convolve(centers, [0.5, 0.5], mode="valid")
    return np.r_[2 * centers[0] - middles[0], middles, 2 * centers[-1] - middles[-1]]


def _read_only(values: Any) -> Float64[np.ndarray, " n"]:
    """A read-only copy in float64."""
    values = np.array(values, np.float64)
    values.flags.writeable = False
    return values
