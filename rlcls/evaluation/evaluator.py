"""The interface of an evaluator, and when it is called."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import PyTree

from rlcls.training.loop import Tick


@runtime_checkable
class Evaluator(Protocol):
    """Scores an acting policy. By convention it is made as `Evaluator(agent, env, *, seed, options)`.

    One whose constructor takes `data` is given the run's data set too (None where there is none). A class with
    `plays = False` does not play: it is made once for several games, and its data may differ from the environment.

    A method `close()` is called at the end of a run, if there is one.
    """

    def __call__(self, acting: PyTree, number: int, tick: Tick) -> dict[str, Any]:
        """One evaluation; its result is a function of the arguments.

        Args:
          acting: what the agent's `act` takes.
          number: the moment of the run, `Loop.number`.
          tick: to be called often.

        Returns:
          What a line of metrics holds: numbers, or lists of them, by name.
        """
        ...


class Periodic(NamedTuple):
    """An evaluator and its period.

    Attributes:
      kind: the kind of its lines in the metrics, such as "eval".
      evaluator: what is called.
      every: units of the loop between two calls; 0 never calls it.
    """

    kind: str
    evaluator: Evaluator
    every: int
