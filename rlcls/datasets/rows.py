"""The common format of recorded experience: rows in the order in which they were played."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped, UInt8

from rlcls.spec import Spec

CONTINUES = 0
"""A value of `starts`: the row continues the episode of the previous row."""
BEGINS = 1
"""A value of `starts`: the row is the first of its episode."""
CUT = 2
"""A value of `starts`: the row is the first recorded one of an episode, but not the first of the episode."""
TRUNCATED = 3
"""A value of `starts`: the row is the final observation of an episode that a limit of the environment ended."""


class Rows(NamedTuple):
    """Consecutive rows. A row has the observation, action and outcome of one agent step.

    An episode is a row with BEGINS or CUT, and the rows after it up to the next such row. Transitions bootstrap from
    its last row and do not start there, unless that row is terminal. This rule covers recordings with and without a
    final observation. An episode without a terminal whose last row is not TRUNCATED was not recorded to its end.

    Attributes:
      frames: [rows, *frame], the newest frame of the observation.
      actions: int32 [rows], or float32 [rows, D]; taken at that observation.
      rewards: the rewards of the actions.
      terminals: whether the action terminated the episode; false if a limit or the end of a file cut it.
      starts: CONTINUES, BEGINS, CUT or TRUNCATED.
    """

    frames: Shaped[np.ndarray, "rows *frame"]
    actions: Shaped[np.ndarray, "rows *action"]
    rewards: Float32[np.ndarray, "rows"]
    terminals: Bool[np.ndarray, "rows"]
    starts: UInt8[np.ndarray, "rows"]

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return len(self.rewards)

    def part(self, first: int, last: int) -> Rows:
        """The rows first, ..., last - 1."""
        return Rows(*(column[first:last] for column in self))

    @property
    def begins(self) -> Bool[np.ndarray, "rows"]:
        """Whether each row is the first of an episode, or the first recorded one."""
        return (self.starts == BEGINS) | (self.starts == CUT)

    def episode_returns(self) -> tuple[Float64[np.ndarray, "episodes"], Bool[np.ndarray, "episodes"]]:
        """The sum of the rewards of each episode, and whether the episode is recorded from its beginning to its end."""
        first = np.flatnonzero(self.begins)
        last = np.append(first[1:], self.num_rows) - 1
        # The final observation follows the terminal step, and some formats do not have it. An earlier terminal is a
        # lost life.
        is_terminal = self.terminals[last] | self.terminals[np.maximum(last - 1, first)]
        ended = is_terminal | (self.starts[last] == TRUNCATED)
        returns = np.add.reduceat(np.asarray(self.rewards, np.float64), first)
        return returns, (self.starts[first] == BEGINS) & ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The shapes and dtypes of a recording.

    Attributes:
      game: name of the game or environment.
      frame_shape: shape of one frame.
      frame_dtype: numpy's name of the frames' dtype.
      stack: frames in an observation ([stack, *frame_shape]); 0 if the frame is the observation.
      num_actions: number of values of a discrete action; None for continuous actions.
      action_low: lowest values of a continuous action, D numbers.
      action_high: highest values of a continuous action, D numbers.
      rewards_clipped: whether the rewards were clipped to [-1, 1] before they were recorded.
    """

    game: str
    frame_shape: tuple[int, ...]
    frame_dtype: str = "uint8"
    stack: int = 0
    num_actions: int | None = None
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    rewards_clipped: bool = False

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Layout:
        """The layout whose `dataclasses.asdict`, stored as JSON, is `values`."""
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**options)

    @property
    def spec(self) -> Spec:
        """The observations and actions of this layout."""
        shape = (self.stack, *self.frame_shape) if self.stack else self.frame_shape
        observation = jax.ShapeDtypeStruct(shape, np.dtype(self.frame_dtype))
        if self.num_actions is not None:
            return Spec(observation, jax.ShapeDtypeStruct((), np.int32), self.num_actions, None)
        low, high = np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)
        return Spec(observation, jax.ShapeDtypeStruct(low.shape, np.float32), None, (low, high))

    @property
    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """The dtype and shape of a row of each column, in the order of `Rows`."""
        action = self.spec.action
        return {
            "frames": (np.dtype(self.frame_dtype), self.frame_shape),
            "actions": (np.dtype(action.dtype), action.shape),
            "rewards": (np.dtype(np.float32), ()),
            "terminals": (np.dtype(bool), ()),
            "starts": (np.dtype(np.uint8), ()),
        }

    def check(self, rows: Rows) -> None:
        """Raises a ValueError, in one line, if `rows` do not have this layout."""
        for (name, (dtype, shape)), column in zip(self.columns.items(), rows, strict=True):
            if column.dtype != dtype or column.shape != (rows.num_rows, *shape):
                raise ValueError(
                    f"{name} are {column.dtype} {list(column.shape)}, not {dtype} {[rows.num_rows, *shape]}"
                )
        if not np.isfinite(rows.rewards).all():
            raise ValueError("a reward is not finite")
        if rows.starts.max(initial=0) > TRUNCATED:
            raise ValueError(f"starts has the value {rows.starts.max()}; it can be 0, 1, 2 or 3")
        low, high = rows.actions.min(initial=0), rows.actions.max(initial=0)
        if self.num_actions is not None and not (low >= 0 and high < self.num_actions):
            wrong = low if low < 0 else high
            raise ValueError(f"action {wrong} is not one of the {self.num_actions} actions of {self.game}")
        if self.num_actions is None and not np.isfinite(rows.actions).all():
            raise ValueError("an action is not finite")
