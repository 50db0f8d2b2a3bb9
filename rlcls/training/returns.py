"""Returns and lengths of the episodes that several environments play at once."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

_RECENT = 20


class EpisodeReturns:
    """Sums the rewards of each environment until its next episode begins.

    Attributes:
      finished: episodes finished since the run began.
      recent: returns of the last 20 finished episodes.
    """

    def __init__(self, num_envs: int):
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self.finished = 0
        self.recent: collections.deque[float] = collections.deque(maxlen=_RECENT)

    def add(self, rewards: Float[np.ndarray, "n"], starts: Bool[np.ndarray, "n"]) -> list[tuple[float, int]]:
        """Adds a vector step.

        Args:
          rewards: raw rewards, not clipped.
          starts: whether this step started a new episode. Such a step ignores its action.

        Returns:
          (return, length in agent steps) of each finished episode. An episode counts as finished once the next starts.
        """
        over = np.flatnonzero(starts)
        episodes = [(float(self._returns[i]), int(self._lengths[i])) for i in over]
        self._returns += rewards
        self._lengths += 1
        self._returns[over] = self._lengths[over] = 0
        self.finished += len(episodes)
        self.recent.extend(value for value, _ in episodes)
        return episodes

    @property
    def mean(self) -> float | None:
        """The mean of the last 20 finished episodes; None before the first."""
        return float(np.mean(self.recent)) if self.recent else None

    def save(self) -> dict[str, Any]:
        """The state as JSON-able values."""
        return {
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "finished": self.finished,
            "recent": list(self.recent),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continues from the state that `save` returned."""
        self._returns[:], self._lengths[:] = saved["returns"], saved["lengths"]
        self.finished = saved["finished"]
        self.recent = collections.deque(saved["recent"], maxlen=_RECENT)

    @staticmethod
    def deal(saved: Sequence[dict[str, Any]], own: slice) -> dict[str, Any]:
        """Combines the states that several processes saved into the state of one of another number of processes.

        Args:
          saved: the result of `save` of each process that wrote the checkpoint.
          own: the environments of the process, numbered over all. The process with the first environment
            continues the count of finished episodes of all processes.
        """
        dealt = {
            name: [each for part in saved for each in part[name]][own] for name in ("returns", "lengths")
        }
        finished = sum(part["finished"] for part in saved)
        recent = [value for part in saved for value in part["recent"]]
        return dealt | {"finished": 0 if own.start else finished, "recent": recent[-_RECENT:]}

    def drop_unfinished(self) -> None:
        """Forgets the unfinished episodes, because every environment starts another one."""
        self._returns[:] = self._lengths[:] = 0
