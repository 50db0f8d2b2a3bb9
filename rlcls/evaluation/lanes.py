"""Evaluates each lane of a compiled loop with its own evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import PyTree

from rlcls.training.compiled import of_lanes

from .evaluator import Evaluator, Tick


class EachLane:
    """Calls the evaluator of each lane in turn: an `rlcls.evaluation.Evaluator` of many seeds.

    Its values are those of `rlcls.training.compiled.of_lanes`.

    Args:
      evaluators: one for each lane.
    """

    def __init__(self, evaluators: Sequence[Evaluator]):
        self._evaluators = list(evaluators)

    def __call__(self, acting: PyTree, number: int, tick: Tick) -> dict[str, Any]:
        """One evaluation of every lane; `acting` is from `Compiled.acting`."""
        lanes = len(self._evaluators)
        each = []
        for lane, evaluator in enumerate(self._evaluators):

            def tick_of_all(done: int, total: int, lane: int = lane) -> object:
                return tick(lane * total + done, lanes * total)

            each.append(evaluator(acting[str(lane)], number, tick_of_all))
        return of_lanes({name: [values[name] for values in each] for name in each[0]})

    def close(self) -> None:
        """Closes every evaluator."""
        for evaluator in self._evaluators:
            getattr(evaluator, "close", lambda: None)()
