"""Continuous actions as tokens: each dimension in bins, or in bins within bins."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

_MOST_CELLS = 2**20  # a float32 between 0 and 1 tells so many apart with room to spare


@dataclasses.dataclass(frozen=True)
class ActionBins:
    """Actions of D numbers as T = D * levels tokens of `bins` values each.

    Each dimension is divided into `bins` intervals of equal width, each of these into `bins` again, and so on for
    `levels`. A token is the number of the interval; an action is the centre of its last interval. The first D tokens
    are the coarsest intervals of all dimensions, the next D those within, and so on.

    Args:
      low: the lowest value of each dimension.
      high: the highest value of each dimension.
      bins: intervals into which one is divided.
      levels: how often.

    Raises:
      ValueError: a number is out of range.

    Source: Chebotar et al. 2023, section 4.1; with several levels, Seo et al. 2024 (coarse-to-fine).

    >>> ActionBins((-1.0,), (1.0,), bins=4).encode(np.array([[-1.0], [0.1], [1.0]], np.float32)).tolist()
    [[0], [2], [3]]
    >>> ActionBins((0.0,), (1.0,), bins=2, levels=2).decode(np.array([[1, 0]], np.int32)).tolist()
    [[0.625]]
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: int
    levels: int = 1

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2, not {self.bins}")
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, not {self.levels}")
        if self.cells > _MOST_CELLS:
            raise ValueError(
                f"{self.bins} bins at {self.levels} levels are more than {_MOST_CELLS:,} intervals"
            )
        for low, high in zip(self.low, self.high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ValueError(f"an action between {low} and {high} cannot be divided into bins")

    @property
    def cells(self) -> int:
        """The smallest intervals of a dimension."""
        return int(self.bins**self.levels)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.low) * self.levels

    def encode(self, actions: Float[ArrayLike, "b d"]) -> Int[Array, "b t"]:
        """The tokens of actions; what lies outside the range is in the outermost interval."""
        low, high = jnp.array(self.low, jnp.float32), jnp.array(self.high, jnp.float32)
        share = (jnp.asarray(actions, jnp.float32) - low) / (high - low)
        cell = jnp.clip(jnp.floor(share * self.cells), 0, self.cells - 1).astype(jnp.int32)
        digits = [cell // self.bins**level % self.bins for level in reversed(range(self.levels))]
        return jnp.concatenate(digits, axis=-1)

    def decode(self, tokens: Int[ArrayLike, "b t"]) -> Float[Array, "b d"]:
        """The centres of the intervals that tokens name."""
        low, high = jnp.array(self.low, jnp.float32), jnp.array(self.high, jnp.float32)
        cell = jnp.zeros((), jnp.int32)
        for digit in jnp.split(jnp.asarray(tokens), self.levels, axis=-1):
            cell = cell * self.bins + digit
        return low + (cell.astype(jnp.float32) + 0.5) / self.cells * (high - low)
