"""Makes updates in a second thread. Their results are read after a fixed lag."""

from __future__ import annotations

import collections
import concurrent.futures
import inspect
import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from rlcls._errors import UserError
from rlcls.agents.base import Agent
from rlcls.transition import Transition

from .loop import Where
from .placement import Placement

_T = TypeVar("_T")


class Diverged(UserError):
    """An update gave a loss or a parameter that is not finite."""


class Result(NamedTuple):
    """The result of an update, on the host.

    Attributes:
      number: the number of the update, counted from 0.
      where: the origin of its batch.
      metrics: floats by name.
      priorities: float32 [B], or None if the agent returns none.
      diagnostics: floats by name; empty if this update had no diagnosis.
    """

    number: int
    where: Where
    metrics: dict[str, float]
    priorities: np.ndarray | None
    diagnostics: dict[str, float]


class _Pending(NamedTuple):
    """A submitted update, whose values are still on the device; the fields are those of `Result`.

    `finite` says whether all parameters are finite after it.
    """

    number: int
    where: Where
    metrics: dict[str, Any]
    priorities: Any
    diagnostics: dict[str, Any]
    finite: Any


class _Round(NamedTuple):
    """The updates of a round, and the acting part of the agent after them; None if the round has no updates."""

    updates: list[concurrent.futures.Future[_Pending]]
    acting: concurrent.futures.Future[PyTree] | None


class Learner:
    """Makes updates one after another while the caller acts, and returns their results `lag` rounds later.

    A *round* is the updates that are submitted between two calls of `end_round`; it may be empty. The lag alone
    determines in which round a result is read, so a run gives the same bits at any speed of its threads.

    Args:
      agent: the agent that learns.
      init_key: the key of the agent's first state.
      update_key: the key of an update is this key, folded with the number of the update.
      lag: rounds between submitting an update and using its result.
      act_with_target: whether the target network acts instead of the online network.
      placement: the devices on which updates are made; None takes one.
      scale_weights: whether the weights of a batch are divided by the largest weight of the whole batch.

    Attributes:
      acting: the acting part of the agent in this round, on one device.
      placement: the devices.
      submitted: updates submitted since the run began.
      update: the compiled program of one update, (state, batch, number) -> (state, UpdateInfo, whether all parameters
        are finite). It donates the state.
    """

    def __init__(
        self,
        agent: Agent[Any],
        init_key: Array,
        update_key: Array,
        *,
        lag: int = 0,
        act_with_target: bool = False,
        placement: Placement | None = None,
        scale_weights: bool = False,
    ):
        self.placement = placement or Placement()
        self._state = self.placement.init(agent.init, init_key)
        self.update = update_of(agent, update_key, self.placement, self._state, scale_weights)
        diagnose = getattr(agent, "diagnose", None)
        self._diagnose = self.placement.jit(diagnose) if diagnose else None
        # A separate jitted program: its outputs never alias buffers that the next update donates.
        self._copy_acting = self.placement.jit(
            lambda state: jax.tree.map(jnp.copy, agent.acting(state, target=act_with_target))
        )
        self._lag, self._raises = lag, True
        self.acting = self._acting()
        self.submitted = 0
        self._start_threads()

    def _start_threads(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._rounds = collections.deque(_Round([], None) for _ in range(self._lag))
        self._current: list[concurrent.futures.Future[_Pending]] = []

    @property
    def diagnoses(self) -> bool:
        """Whether the agent has `diagnose`."""
        return self._diagnose is not None

    def submit(self, batch: Transition, where: Where, held_out: Transition | None = None) -> None:
        """Queues an update of the present round. With `held_out` a diagnosis of the network precedes it."""
        self._current.append(self._thread.submit(self._run, batch, where, self.submitted, held_out))
        self.submitted += 1

    def end_round(self) -> list[Result]:
        """Ends the present round, and sets `acting` to the parameters after the round that was `lag` rounds before.

        Returns:
          The results of that earlier round's updates.

        Raises:
          Diverged: one of these results is not finite.
        """
        # The acting parameters are copied once per round, because a copy for every update would fill the memory.
        after = self._thread.submit(self._acting) if self._current else None
        self._rounds.append(_Round(self._current, after))
        self._current = []
        updates, acting = self._rounds.popleft()
        results = [self._read(future.result()) for future in updates]
        if acting:
            self.acting = acting.result()
        return results

    def save(self) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
        """The current state as a pytree for Orbax and small arrays. It changes nothing, also in the middle of a round.

        The next update donates the pytree's "state", so write or copy it first.

        Raises:
          Diverged: an update gave a result that is not finite.
        """
        submitted = [*(updates for updates, _ in self._rounds), self._current]
        rounds = [[self._read(future.result()) for future in updates] for updates in submitted]
        # The acting parts of the present round and of each of the next `lag` rounds.
        acting = [self.acting]
        for _, after in self._rounds:
            acting.append(after.result() if after else acting[-1])
        arrays: dict[str, np.ndarray] = {"learner/submitted": np.asarray(self.submitted)}
        for i, results in enumerate(rounds):
            for j, result in enumerate(results):
                values: dict[str, Any] = {"number": result.number}
                values |= {f"where/{axis}": indices for axis, indices in enumerate(result.where)}
                values |= {f"metrics/{name}": value for name, value in result.metrics.items()}
                values |= {f"diagnostics/{name}": value for name, value in result.diagnostics.items()}
                if result.priorities is not None:
                    values["priorities"] = result.priorities
                arrays |= {f"pending/{i}/{j}/{name}": np.asarray(value) for name, value in values.items()}
        if self.placement.hosts > 1:  # Orbax needs arrays that all processes have
            acting = [self.placement.everywhere(jax.device_get(each)) for each in acting]
        return {"state": self._state, "acting": acting[0], "acting_later": acting[1:]}, arrays

    def restore(self, tree: dict[str, PyTree], arrays: dict[str, np.ndarray]) -> None:
        """Continues from the state that `save` returned. `arrays` may contain other arrays, too."""
        self._state, self.acting = tree["state"], self.placement.acting(tree["acting"])
        self.submitted = int(arrays["learner/submitted"])
        for i in range(self._lag + 1):
            pending: list[concurrent.futures.Future[_Pending]] = []
            while f"pending/{i}/{len(pending)}/number" in arrays:
                values = _below(arrays, f"pending/{i}/{len(pending)}/")
                where = _below(values, "where/")
                update = _Pending(
                    number=int(values["number"]),
                    where=tuple(where[str(axis)] for axis in range(len(where))),
                    metrics=_below(values, "metrics/"),
                    priorities=values.get("priorities"),
                    diagnostics=_below(values, "diagnostics/"),
                    finite=True,
                )
                pending.append(_done(update))
            if i < self._lag:
                self._rounds[i] = _Round(
                    pending, _done(self.placement.acting(tree["acting_later"][i])) if pending else None
                )
            else:
                self._current = pending

    def rehearsal(self) -> Learner:
        """A learner with the same compiled programs and a copy of the state. It never raises `Diverged`."""
        copy = object.__new__(Learner)
        copy.__dict__.update(self.__dict__)
        copy._state = self.placement.copy(self._state)
        copy._raises = False
        copy._start_threads()
        return copy

    def close(self) -> None:
        """Waits for the update that is running, and drops the queued ones.

        Several processes also make the queued updates, because they wait for each other in every update.
        """
        self._thread.shutdown(cancel_futures=self.placement.hosts == 1)

    def _run(self, batch: Transition, where: Where, number: int, held_out: Transition | None) -> _Pending:
        # This reads no result, so the next update is dispatched while this one runs. Every transfer between host and
        # device is explicit, so JAX_TRANSFER_GUARD=disallow finds only unintended ones. On a CPU the program reads the
        # batch in place, because a copy would take a twentieth of an update.
        place = self.placement
        batch, held_out = place.batch((batch, held_out))
        seen = {}
        if self._diagnose and held_out:
            seen = place.settled(self._diagnose(self._state, batch, held_out))
        self._state, info, finite = place.settled(self.update(self._state, batch, place.everywhere(number)))
        return _Pending(number, where, info.metrics, info.priorities, seen, finite)

    def _acting(self) -> PyTree:
        return self.placement.acting(self.placement.settled(self._copy_acting(self._state)))

    def _read(self, update: _Pending) -> Result:
        """Waits for an update, and copies its values to the host.

        The parameters are checked too, because a gradient can overflow before a loss shows it.
        """
        arrays, priorities, diagnostics, finite = self.placement.local(
            (update.metrics, update.priorities, update.diagnostics, update.finite)
        )
        metrics = {name: float(value) for name, value in arrays.items()}
        infinite = [name for name, value in metrics.items() if not math.isfinite(value)]
        if self._raises and infinite:
            raise Diverged(f"{infinite[0]} is {metrics[infinite[0]]} at update {update.number + 1}")
        if self._raises and not finite:
            raise Diverged(f"the parameters are no longer finite after update {update.number + 1}")
        if not self._raises and priorities is not None:  # a replay accepts only finite priorities
            priorities = np.nan_to_num(priorities, posinf=1.0)
        seen = {name: float(value) for name, value in diagnostics.items()}
        return Result(update.number, update.where, metrics, priorities, seen)


def update_of(
    agent: Agent[Any], key: Array, placement: Placement, state: Any, scale_weights: bool = False
) -> Any:
    """The compiled program of one update, (state, batch, number) -> (state, UpdateInfo, whether it is finite).

    Args:
      agent: the agent that learns.
      key: the key of an update is this key, folded with the number of the update.
      placement: the devices.
      state: from `placement.init`, or its shapes.
      scale_weights: whether the weights of a batch are divided by the largest weight of the whole batch.
    """

    def update(state: Any, batch: Transition, number: Any, **mean: Any) -> Any:
        state, info = agent.update(state, batch, jax.random.fold_in(key, number), **mean)
        return state, info, all_finite(agent.acting(state))

    # The update donates its state, so the new state reuses that memory. Without donation, page faults take a sixth of
    # an update on a CPU.
    averages = "mean" in inspect.signature(agent.update).parameters
    return placement.update(update, state, averages=averages, scales=scale_weights)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every floating-point number in the tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return (
        jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.asarray(True)
    )


def _below(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with `prefix`. The prefix is removed from their names."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _done(result: _T) -> concurrent.futures.Future[_T]:
    """A future that already has its result."""
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()
    future.set_result(result)
    return future
