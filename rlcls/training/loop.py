"""The interfaces of training: where batches come from, what a run drives, and what a checkpoint holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import PyTree

from rlcls._errors import UserError, check_choice, class_name
from rlcls.spec import Spec
from rlcls.transition import Transition

Where = tuple[np.ndarray, ...]
"""The origin of the B items of a batch: arrays [B] that only their source understands."""

UNITS = ("agent_steps", "updates")
"""What the `steps` of a run can count."""

Tick = Callable[[int, int], object]
"""(done, total): called often during long work; it may raise to stop the work."""


@runtime_checkable
class Source(Protocol):
    """A replay or a data set, from which batches are sampled."""

    def sample(self, size: int, seed: int, number: int) -> tuple[Transition, Where]:
        """A batch that is a pure function of the seed, the update number and the contents.

        Args:
          size: B, transitions in the batch.
          seed: the run's seed.
          number: the batch's update, counted from 0.

        Returns:
          The batch, and the origin of its items. The source must not write to these arrays later, because the learner
          may use them without a copy.
        """
        ...


@runtime_checkable
class Dataset(Source, Protocol):
    """A source of recorded experience.

    It may have an `identity`, a dict from the name of each part to a str that identifies its contents. A run then
    resumes only with data of the same identity.
    """

    @property
    def spec(self) -> Spec:
        """The observations and actions that were recorded."""
        ...


@runtime_checkable
class Rows(Protocol):
    """Data that grows at one end and loses its oldest rows at the other, such as a replay's ring.

    Attributes:
      first: number of the oldest row held.
      last: one more than the number of the newest row held.
      row_bytes: memory of one row.
      num_streams: the columns of a row, one for each environment.
    """

    num_streams: int

    @property
    def first(self) -> int: ...

    @property
    def last(self) -> int: ...

    @property
    def row_bytes(self) -> int: ...

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Copies of the rows first, ..., last - 1, as arrays [rows, num_streams, ...] by name."""
        ...

    def write(self, first: int, columns: dict[str, np.ndarray]) -> None:
        """Restores rows that `read` returned. The first of them gets the number `first`, and `last` grows with them."""
        ...


class Saved(NamedTuple):
    """The state of a loop. A loop restored from it gives the same bits as one that was never stopped.

    Attributes:
      tree: a dict of arrays, possibly sharded, which Orbax writes; its entry "acting" is what `Loop.acting` returns.
      arrays: small numpy arrays of this host, by name.
      counters: JSON-able values by name.
      rows: data that is saved incrementally.
    """

    tree: dict[str, PyTree]
    arrays: dict[str, np.ndarray]
    counters: dict[str, Any]
    rows: Rows | None = None


@runtime_checkable
class Loop(Protocol):
    """Training that advances step by step and can be saved between two steps; `rlcls.runs.run` drives it.

    Attributes:
      unit: the key of `counts` that a run's `steps` refer to, "agent_steps" or "updates".
      counts: the counts on every line of metrics: agent_steps, frames and updates so far.
      number: grows with every `advance`. It identifies a moment of the run, and seeds the evaluation there.
    """

    unit: str

    @property
    def counts(self) -> dict[str, int]: ...

    @property
    def number(self) -> int: ...

    def advance(self) -> list[tuple[str, dict[str, Any]]]:
        """Advances by one vector step, or by one block of updates.

        Returns:
          (kind, values) of each line for the metrics: "episode", "diagnostics", "train". Values may override counts.

        Raises:
          Diverged: an update gave a result that is not finite.
        """
        ...

    def summary(self) -> dict[str, Any]:
        """The values of a "train" line over the updates since the last such line; it changes nothing."""
        ...

    def acting(self) -> PyTree:
        """The first argument of the agent's `act` at this moment."""
        ...

    def save(self) -> Saved:
        """The current state; it changes nothing.

        Usually this is the state between two calls of `advance`. After an exception of an environment or a data set it
        is the state in which `advance` stopped. A loop restored from it repeats that call, and gives the bits that the
        call would have given.

        The next `advance` may donate the arrays of the tree, so write or copy them first.

        Raises:
          Diverged: an update gave a result that is not finite, so this state is useless.
          RuntimeError: an exception stopped `advance` in a step that can be neither finished nor repeated.
        """
        ...

    def restore(self, saved: Saved, tick: Tick = ...) -> None:
        """Continues from a saved state, whose rows the caller has already written to the loop's `Rows`.

        Args:
          saved: a result of `save`. If its `rows` are None, the saved rows are lost, and the loop collects new ones.
          tick: called while environments replay their steps, with the steps done and the total.

        Raises:
          UserError: the environments do not return to their saved states.
        """
        ...

    def warm_up(self, until: int) -> float:
        """Compiles what a run to `until` units needs, and measures the speed of the loop. Call it before `restore`.

        Returns:
          Seconds for one unit once learning has begun.
        """
        ...

    def close(self) -> None:
        """Ends threads and environments."""
        ...


@runtime_checkable
class Dealing(Protocol):
    """A loop of several processes that can continue from a state that another number of processes saved."""

    def deal(self, parts: Sequence[Saved]) -> Saved:
        """The share of this process in the state that other processes saved, for `Loop.restore`.

        Args:
          parts: the part that each process saved. All parts have the same tree, and the rows of this process.

        Raises:
          UserError: the parts cannot be divided among the processes of this loop.
        """
        ...


def check(loop: Loop) -> None:
    """Raises a UserError if a loop lacks a member that a run needs, even one that only a later resume would need."""
    kind = class_name(loop)
    missing = [name for name in vars(Loop) if not name.startswith("_") and not hasattr(loop, name)]
    if missing:
        raise UserError(
            f"training: {kind} has no {' and no '.join(missing)}; rlcls.training.Loop lists what a loop has"
        )
    try:
        check_choice("unit", loop.unit, UNITS)
        inspect.signature(loop.restore).bind(None, None)
        if loop.unit not in loop.counts:
            raise ValueError(
                f"counts must have {loop.unit}, the loop's unit, and has only {', '.join(loop.counts)}"
            )
    except TypeError:
        raise UserError(
            f"training: {kind}.restore must take (saved, tick), as rlcls.training.Loop has it"
        ) from None
    except ValueError as error:
        raise UserError(f"training: {kind}: {error}") from error


def check_same_data(before: dict[str, str] | None, now: dict[str, str] | None) -> None:
    """Raises a UserError that names the parts in which two identities of data differ; None is an unknown identity."""
    if before is None or now is None or before == now:
        return
    names = [name for name in before | now if before.get(name) != now.get(name)]
    changes = "; ".join(
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}" for name in names
    )
    raise UserError(
        f"the data has changed since the checkpoint: {changes}; put that data back, or begin another run with run_dir="
    )
