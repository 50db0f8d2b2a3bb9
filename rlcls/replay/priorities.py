"""Samples slots in proportion to weights, of which a few change at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int


class Priorities:
    """The weights of `size` slots, and their sums over blocks.

    There are about sqrt(size) blocks of about sqrt(size) slots, instead of the usual binary tree. A change computes the
    sum of its block again. A draw searches the sums of the blocks and then one block. Each takes a few numpy calls.
    Sums are never incremented, so draws depend on the weights only, and not on the order in which they were written.

    Args:
      size: number of slots.
    """

    def __init__(self, size: int):
        self.size = size
        self._block = 1 << max(5, int(np.ceil(np.log2(max(size, 2)) / 2)))
        num_blocks = -(-size // self._block)
        self._leaves = np.zeros((num_blocks, self._block))
        self._sums = np.zeros(num_blocks)

    @property
    def weights(self) -> Float[np.ndarray, "size"]:
        """All weights, as a read-only view; use `assign` and `assign_all` to change them."""
        return self._leaves.reshape(-1)[: self.size]

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._sums.sum())

    def assign(self, slots: Int[np.ndarray, "n"], weights: Float[np.ndarray, "n"] | float) -> None:
        """Sets the weights of `slots`. A slot that appears twice gets the later weight.

        Raises:
          ValueError: a weight is negative or not finite. No weight changes then.
        """
        _check(weights)
        self._leaves.reshape(-1)[slots] = weights
        blocks = np.unique(slots // self._block)
        self._sums[blocks] = self._leaves[blocks].sum(axis=1)

    def assign_all(self, weights: Float[np.ndarray, "size"]) -> None:
        """Replaces every weight.

        Raises:
          ValueError: a weight is negative or not finite. No weight changes then.
        """
        _check(weights)
        self._leaves.reshape(-1)[: self.size] = weights
        self._sums[:] = self._leaves.sum(axis=1)

    def draw(self, uniforms: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Maps uniform random numbers to slots, so that the probability of a slot is proportional to its weight.

        Args:
          uniforms: float64 [n] in [0, 1), positions in the cumulative weights as shares of the total.

        Returns:
          int64 [n] slots of positive weight.

        Raises:
          ValueError: no slot has a positive weight.
        """
        cumulative = np.cumsum(self._sums)
        total = cumulative[-1]
        if not total > 0:
            raise ValueError("no slot has a positive weight: nothing can be drawn")
        # Rounding could move a point to or beyond the end of a block, where slots can have weight 0.
        points = np.minimum(uniforms * total, np.nextafter(total, 0))
        block = np.searchsorted(cumulative, points, side="right")
        within = np.cumsum(self._leaves[block], axis=1)
        rest = points - (cumulative[block] - self._sums[block])
        rest = np.clip(rest, 0, np.nextafter(within[:, -1], 0))
        return block * self._block + (within <= rest[:, None]).sum(axis=1)


def _check(weights: Any) -> None:
    """Raises a ValueError if a weight is negative or not finite."""
    if not (np.isfinite(weights).all() and np.greater_equal(weights, 0).all()):
        raise ValueError("priorities must be finite and at least 0")
