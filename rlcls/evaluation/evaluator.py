"""The interface of an evaluator, and when it is called."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import PyTree

from rlcls.training.loop import Tick


@runtime_checkable
class Evaluator(Protocol):
    """Scores an acting policy. By convention it is made as `Evaluator(agent, env, *, seed, options)`.

    A constructor that takes `data` is also given the run's dataset, or None. A class that plays no episodes sets
    `plays = False`: one instance is then made for all games of a run, and its data need not fit the environment.

    If it has a method `close()`, this is called at the end of a run.
    """

    def __call__(self, acting: PyTree, number: int, tick: Tick) -> dict[str, Any]:
        """One evaluation. Its result is a function of the arguments.

        Args:
          acting: the argument of the agent's `act`.
          number: `Loop.number` at the time of the evaluation.
          tick: to be called often, with the work done and all work.

        Returns:
          Values for the metrics: numbers, or lists of numbers, by name.
        """
        ...


class Periodic(NamedTuple):
    """An evaluator and its period.

    Attributes:
      kind: the `kind` of its lines in the metrics, such as "eval".
      evaluator: the evaluator.
      every: units of the loop between two calls; 0 disables it.
    """

    kind: str
    evaluator: Evaluator
    every: int
