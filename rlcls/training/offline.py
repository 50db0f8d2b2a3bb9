"""Training offline: updates from recorded data, without an environment."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

from jaxtyping import PyTree

from rlcls.agents.base import Agent
from rlcls.transition import Transition

from . import xla
from .batches import check_values
from .learner import Learner
from .loop import Dataset, Saved, Tick, Where, check_same_data
from .placement import Placement

_BLOCK = 10  # updates in one call of `advance`
_REHEARSAL = 0.5  # seconds; `warm_up` measures updates for at least this long


class Offline:
    """A loop that samples a batch for each update number, so its position in the data is the update number.

    A second thread makes the updates, so sampling a batch overlaps with earlier updates. One `advance` makes ten
    updates, so a run ends, evaluates and saves at multiples of ten.

    Args:
      agent: the agent that learns.
      data: where batches come from. If it has an `identity` (`Dataset`), checkpoints contain it.
      seed: determines the networks and the samples.
      batch_size: transitions in an update, summed over all processes.
      act_with_target: whether the agent's target network is evaluated instead of the online network.
      log_every: updates between two "train" lines.
      placement: the devices on which updates are made; None takes one.

    Attributes:
      number: updates made so far.

    Raises:
      ValueError: an option is out of range.
    """

    unit = "updates"

    def __init__(
        self,
        agent: Agent[Any],
        data: Dataset,
        *,
        seed: int = 0,
        batch_size: int = 32,
        act_with_target: bool = False,
        log_every: int = 1_000,
        placement: Placement | None = None,
    ):
        if batch_size < 1 or log_every < 1:
            raise ValueError(f"batch_size ({batch_size}) and log_every ({log_every}) must be at least 1")
        placement = placement or Placement()
        placement.check_batch(batch_size=batch_size)
        self.number = 0
        self._data, self._seed = data, seed
        self._batch_size, self._log_every = batch_size // placement.hosts, log_every
        self._hosts = placement.hosts
        init_key, update_key = xla.keys(seed, xla.Use.INIT, xla.Use.UPDATE)
        self._learner = Learner(
            agent, init_key, update_key, act_with_target=act_with_target, placement=placement
        )
        # Whether `advance` failed in a block that can be neither finished nor repeated.
        self._halfway = False
        # The sums of the updates' metrics since the last "train" line, and the number of those updates.
        self._sums: collections.Counter[str] = collections.Counter()

    @property
    def counts(self) -> dict[str, int]:
        """Updates so far."""
        return {"updates": self.number}

    def acting(self) -> PyTree:
        """The acting part of the agent, with which evaluators play."""
        return self._learner.acting

    def advance(self) -> list[tuple[str, dict[str, Any]]]:
        """Ten updates, or fewer up to the next "train" line."""
        self._update(min(_BLOCK, self._log_every - self.number % self._log_every))
        if self.number % self._log_every:
            return []
        values = self.summary()
        self._sums.clear()
        return [("train", values)]

    def _update(self, count: int) -> None:
        # If `_sample` raises, the loop can be saved: the block continues with the first update that was not submitted.
        while self._learner.submitted < self.number + count:
            self._learner.submit(*self._sample(self._learner.submitted))
        self._halfway = True
        for result in self._learner.end_round():
            self._sums.update(result.metrics)
            self._sums["updates"] += 1
        self.number += count
        self._halfway = False

    def _sample(self, number: int) -> tuple[Transition, Where]:
        """The batch of an update, once its values have been checked."""
        batch, where = self._data.sample(self._batch_size, self._seed, number)
        check_values(self._data, batch, where)
        return batch, where

    def summary(self) -> dict[str, Any]:
        """The values of a "train" line over the updates since the last one."""
        return {
            name: value / self._sums["updates"] for name, value in self._sums.items() if name != "updates"
        }

    def warm_up(self, until: int) -> float:
        """Compiles the update, and measures half a second of updates, which it then discards.

        Returns:
          Seconds for one update.
        """
        learner = self._learner.rehearsal()
        seconds, updates = 0.0, 0
        try:
            for block in (1, *[_BLOCK] * 1000):
                begun = time.perf_counter()
                for number in range(block):
                    learner.submit(*self._sample(number))
                learner.end_round()
                if block > 1:  # the first update compiles
                    seconds, updates = seconds + time.perf_counter() - begun, updates + block
                # All processes must make equally many updates, so none of them may decide by its own clock.
                if seconds > _REHEARSAL or (self._hosts > 1 and updates):
                    break
        finally:
            learner.close()
        return seconds / updates

    def save(self) -> Saved:
        """The learner and the update number.

        Raises:
          RuntimeError: an `advance` failed halfway.
        """
        if self._halfway:
            raise RuntimeError("the last block of updates ended halfway")
        tree, arrays = self._learner.save()
        counters = {
            "number": self.number,
            "sums": dict(self._sums),
            "data": self._identity,
            # An evaluation of the checkpoint normalises returns with these, because it does not open the data set.
            "behaviour_returns": dict(getattr(self._data, "behaviour_returns", {})),
            "mesh": self._learner.placement.sizes,
        }
        return Saved(tree, arrays, counters)

    def restore(self, saved: Saved, tick: Tick = lambda done, total: None) -> None:
        """Continues from a saved state; the next batch is that of the next update number.

        Raises:
          UserError: the identity of the data has changed since then.
        """
        check_same_data(saved.counters.get("data"), self._identity)
        self._learner.restore(saved.tree, saved.arrays)
        self.number = saved.counters["number"]
        self._sums = collections.Counter(saved.counters["sums"])

    def deal(self, parts: Sequence[Saved]) -> Saved:
        """See `rlcls.training.Dealing`. All processes save the same state."""
        return parts[0]

    def close(self) -> None:
        """Ends the learner's thread."""
        self._learner.close()

    @property
    def _identity(self) -> dict[str, str] | None:
        return getattr(self._data, "identity", None)
