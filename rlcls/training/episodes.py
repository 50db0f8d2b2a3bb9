"""Returns and lengths of the episodes that several environments play at once."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

_RECENT = 20


class Episodes:
    """Sums rewards until an environment starts anew; a re-seed drops what was not finished.

    Attributes:
      finished: episodes finished since the run began.
      recent: returns of the last 20.
    """

    def __init__(self, num_envs: int):
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self.finished = 0
        self.recent: collections.deque[float] = collections.deque(maxlen=_RECENT)

    def add(self, rewards: Float[np.ndarray, "n"], starts: Bool[np.ndarray, "n"]) -> list[tuple[float, int]]:
        """Takes in a vector step.

        Args:
          rewards: raw.
          starts: where this step ended by beginning a new episode: its action was ignored.

        Returns:
          (return, length in agent steps) of each episode that is now known to be finished.
        """
        over = np.flatnonzero(starts)
        done = [(float(self._returns[i]), int(self._lengths[i])) for i in over]
        self._returns += rewards
        self._lengths += 1
        self._returns[over] = self._lengths[over] = 0
        self.finished += len(done)
        self.recent.extend(value for value, _ in done)
        return done

    def drop(self) -> None:
        """Forgets the episodes under way."""
        self._returns[:] = self._lengths[:] = 0

    @property
    def mean_return(self) -> float | None:
        """Of the last 20 finished episodes; None before the first."""
        return float(np.mean(self.recent)) if self.recent else None

    def get_state(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "finished": self.finished,
            "recent": list(self.recent),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """What `get_state` gave."""
        self._returns[:], self._lengths[:] = state["returns"], state["lengths"]
        self.finished = state["finished"]
        self.recent = collections.deque(state["recent"], maxlen=_RECENT)
