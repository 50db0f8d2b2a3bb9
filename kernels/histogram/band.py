"""Where a target's mass lies: its place on the grid, and how far from there it reaches."""

import math
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from .projection import Gaussian, OneHot

AxisName = str | tuple[str, ...]  # of a mesh


def place(
    projection: Any, targets: Float[Array, " b"], dtype: Any
) -> tuple[Int[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
    """What `projection.mass` needs of each target: bin (int32), fraction and scale, these two in `dtype`.

    The place is found in the targets' own precision.
    """
    bins, fractions = projection.split(targets)
    fractions = fractions.astype(dtype)
    return bins, fractions, projection.scale(bins, fractions)


def reach(projection: Any, dtype: Any) -> tuple[int, int]:
    """How many bins below and above the target's own can have mass that the dtype can tell from none.

    A Gaussian's mass beyond six standard deviations is below 1e-9, beyond nine below 1e-18.
    """
    if not isinstance(projection, Gaussian):
        return 0, 0 if isinstance(projection, OneHot) else 1
    deviations = 9 if np.dtype(dtype) == np.float64 else 6
    # The fraction, up to one bin, is on the upper side.
    below = math.ceil(deviations * projection.sigma / projection.grid.width)
    return below, below + 1
