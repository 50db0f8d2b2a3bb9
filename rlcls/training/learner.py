"""Updates in a thread of their own, read back after a fixed lag."""

from __future__ import annotations

import collections
import concurrent.futures
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rlcls._errors import UserError
from rlcls.replay import FrameReplay, Sampled, Transition

_T = TypeVar("_T")


class Diverged(UserError):
    """Learning came to numbers that are not finite."""


class Acting(NamedTuple):
    """What acting needs of an agent's state."""

    params: Any
    network_state: Any

    @classmethod
    def of(cls, state: Any, target: bool) -> Acting:
        """The online network's part of an agent's state, or the target network's."""
        if target:
            return cls(state.target_params, state.target_network_state)
        return cls(state.params, state.network_state)


class _Result(NamedTuple):
    number: int
    metrics: dict[str, Any]
    priorities: Any
    diagnostics: dict[str, Any]


class _Round(NamedTuple):
    """The updates of a vector step, and what to act with after them: None where there are none."""

    updates: list[tuple[Sampled, concurrent.futures.Future[_Result]]]
    acting: concurrent.futures.Future[Acting] | None


# A program of its own: what it gives shares no memory with what it was given.
_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Learner:
    """Runs updates one after another while the caller acts, and hands their results over `lag` vector steps later.

    Which result is seen when depends on the lag alone, never on which thread was quicker, so that a run gives the same
    bits at any speed. The updates of a vector step are a *round*, which may be empty.

    Args:
      update: (state, batch, update number) -> (state, UpdateInfo), compiled; it may take the memory of its first
        argument for its first result, which on a CPU is a sixth of its time.
      state: agent state to begin with; `state.step` updates were made. The first update may consume it.
      lag: rounds between submitting an update and using its result.
      diagnose: (state, batch, held-out batch) -> scalars by name, compiled.
      act_with_target: whether the target network acts, not the online one.

    Attributes:
      acting: what to act with in this round.
      submitted: updates submitted since the run began.
      diagnosed: what was seen inside the network before updates of the round that `end_round` last took in.
    """

    def __init__(
        self,
        update: Callable[..., Any],
        state: Any,
        lag: int,
        diagnose: Callable[..., Any] | None = None,
        act_with_target: bool = False,
    ):
        self._update, self._state, self._diagnose = update, state, diagnose
        self._act_with_target = act_with_target
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._rounds: collections.deque[_Round] = collections.deque(_Round([], None) for _ in range(lag))
        self._current: list[tuple[Sampled, concurrent.futures.Future[_Result]]] = []
        self.acting = self._latest()
        self.submitted = int(state.step)
        self.diagnosed: list[dict[str, Any]] = []

    def submit(self, batch: Transition, sampled: Sampled, held_out: Transition | None = None) -> None:
        """Queues an update of the present round, with a look inside the network before it if `held_out` is given."""
        self._current.append((sampled, self._thread.submit(self._run, batch, self.submitted, held_out)))
        self.submitted += 1

    def end_round(self, replay: FrameReplay) -> list[dict[str, float]]:
        """Ends the present round and takes in the one `lag` rounds before it: `acting`, and the replay's priorities.

        Returns:
          The metrics of that round's updates.

        Raises:
          Diverged: one of them was not finite.
        """
        # Copied once a round, not kept at every update: that would cost each the memory of its parameters.
        self._rounds.append(
            _Round(self._current, self._thread.submit(self._latest) if self._current else None)
        )
        self._current = []
        lines, self.diagnosed = [], []
        updates, acting = self._rounds.popleft()
        for sampled, future in updates:
            result = future.result()
            lines.append(_finite(result))
            if result.diagnostics:
                values = {name: float(value) for name, value in result.diagnostics.items()}
                self.diagnosed.append({"updates": result.number, **values})
            replay.set_priorities(sampled, np.asarray(result.priorities))
        if acting:
            self.acting = acting.result()
        return lines

    def snapshot(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """All that `restore` needs between two rounds: a pytree for Orbax and small arrays. Changes nothing.

        The pytree's "state" is the learner's own, which the next update may consume: save it, or copy it, before.

        Raises:
          Diverged: an update that still ran gave a result that is not finite, or the parameters are not.
        """
        rounds = [[(sampled, future.result()) for sampled, future in updates] for updates, _ in self._rounds]
        acting: list[Acting] = [self.acting]
        arrays: dict[str, np.ndarray] = {}
        for i, results in enumerate(rounds):
            after = self._rounds[i].acting
            acting.append(after.result() if after else acting[-1])
            for j, (sampled, result) in enumerate(results):
                metrics = {f"metrics/{name}": np.asarray(value) for name, value in _finite(result).items()}
                values = {**sampled._asdict(), "priorities": np.asarray(result.priorities), **metrics}
                values["number"] = np.asarray(result.number)
                values |= {f"diagnostics/{name}": np.asarray(v) for name, v in result.diagnostics.items()}
                arrays |= {f"pending/{i}/{j}/{name}": value for name, value in values.items()}
        # A gradient can be lost before a loss shows it, and such a moment is not worth keeping.
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self._state.params)):
            raise Diverged(f"the parameters are no longer finite after update {self.submitted}")
        # What acts after the last pending round is in the state itself.
        return {"state": self._state, "acting": acting[:-1]}, arrays

    def restore(self, tree: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Goes on from a snapshot.

        Args:
          tree: the snapshot's pytree.
          arrays: the snapshot's arrays, others among them.
        """
        self._state = tree["state"]
        self.submitted = int(self._state.step)
        acting = [*tree["acting"], self._latest()]
        self.acting = acting[0]
        for i, after in enumerate(acting[1:]):
            pending: list[tuple[Sampled, concurrent.futures.Future[_Result]]] = []
            while f"pending/{i}/{len(pending)}/rows" in arrays:
                prefix = f"pending/{i}/{len(pending)}/"
                part = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
                metrics, diagnostics = (
                    {name.removeprefix(kind): part[name] for name in part if name.startswith(kind)}
                    for kind in ("metrics/", "diagnostics/")
                )
                result = _Result(int(part["number"]), metrics, part["priorities"], diagnostics)
                pending.append((Sampled(part["streams"], part["rows"]), _done(result)))
            self._rounds[i] = _Round(pending, _done(after) if pending else None)

    def close(self) -> None:
        """Lets the update that runs end, and drops the rest."""
        self._thread.shutdown(cancel_futures=True)

    def _run(self, batch: Transition, number: int, held_out: Transition | None) -> _Result:
        # Nothing is read here: the next update is dispatched while this one still runs.
        seen = self._diagnose(self._state, batch, held_out) if self._diagnose and held_out else {}
        self._state, info = self._update(self._state, batch, number)
        return _Result(number, info.metrics, info.priorities, seen)

    def _latest(self) -> Acting:
        """What the last update made, in memory of its own."""
        return _copy(Acting.of(self._state, self._act_with_target))


def _done(result: _T) -> concurrent.futures.Future[_T]:
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()
    future.set_result(result)
    return future


def _finite(result: _Result) -> dict[str, float]:
    """The metrics of an update, once it is done."""
    metrics = {name: float(value) for name, value in result.metrics.items()}
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value} at update {result.number + 1}")
    return metrics
