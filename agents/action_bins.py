"""Continuous actions as tokens: each dimension is divided into bins, and bins may be divided again."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

_MAX_CELLS = 2**20  # float32 can distinguish this many cells between 0 and 1


@dataclasses.dataclass(frozen=True)
class ActionBins:
    """Actions of D numbers as T = D * levels tokens with `bins` values each.

    Each dimension is divided into `bins` intervals of equal width. Each interval is divided into `bins` again, `levels`
    times in all. A token is the number of an interval within the interval of the level above. A decoded action is the
    centre of its smallest interval. The first D tokens are the coarsest intervals of all dimensions, the next D tokens
    are those of the second level, and so on.

    Args:
      low: the lowest value of each dimension.
      high: the highest value of each dimension.
      bins: number of intervals into which an interval is divided.
      levels: number of levels.

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
        if self.cells > _MAX_CELLS:
            raise ValueError(
                f"{self.bins} bins at {self.levels} levels are more than {_MAX_CELLS:,} intervals"
            )
        for low, high in zip(self.low, self.high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ValueError(f"an action between {low} and {high} cannot be divided into bins")

    @property
    def cells(self) -> int:
        """The number of smallest intervals of a dimension."""
        return int(self.bins**self.levels)

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens of an action."""
        return len(self.low) * self.levels

    def encode(self, actions: Float[ArrayLike, "b d"]) -> Int[Array, "b t"]:
        """The tokens of actions. Numbers outside the range are in the outermost interval."""
        low, high = jnp.array(self.low, jnp.float32), jnp.array(self.high, jnp.float32)
        position = (jnp.asarray(actions, jnp.float32) - low) / (high - low)
        cell = jnp.clip(jnp.floor(position * self.cells), 0, self.cells - 1).astype(jnp.int32)
        digits = [cell // self.bins**level % self.bins for level in reversed(range(self.levels))]
        return jnp.concatenate(digits, axis=-1)

    def decode(self, tokens: Int[ArrayLike, "b t"]) -> Float[Array, "b d"]:
        """The centres of the smallest intervals."""
        low, high = jnp.array(self.low, jnp.float32), jnp.array(self.high, jnp.float32)
        cell = jnp.zeros((), jnp.int32)
        for digit in jnp.split(jnp.asarray(tokens), self.levels, axis=-1):
            cell = cell * self.bins + digit
        # In this form the centre of the middle interval is exactly the middle of the range, such as 0.
        offset = (2 * cell + 1 - self.cells).astype(jnp.float32) / self.cells
        return (low + high) / 2 + offset * ((high - low) / 2)
