"""The interfaces of training: where batches come from, what a run drives, and what a checkpoint holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import PyTree

from rlcls._errors import UserError, check_choice
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
          number: updates before the one that the batch is for.

        Returns:
          The batch, in arrays that are not written to later, because the learner may use them where they lie.
        """
        ...


@runtime_checkable
class Dataset(Source, Protocol):
    """A source of recorded experience.

    It may have an `identity`, {name of a part: str that tells its contents}. A run then resumes only on data of the
    same identity.
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
        """Puts back rows that `read` returned; `first` is the number of the first of them, and `last` follows."""
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
      unit: the key of `counts` that the `steps` of a run are, "agent_steps" or "updates".
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

        The state is one between two calls of `advance`, or one that the exception of an environment or a data set left
        in `advance`: a loop restored from it makes that call again, and gives the bits that it would have given.

        The next `advance` may donate the arrays of the tree, so write or copy them first.

        Raises:
          Diverged: this moment is not worth keeping, because an update gave a result that is not finite.
          RuntimeError: an exception left `advance` where its step can be neither ended nor made again.
        """
        ...

    def restore(self, saved: Saved, tick: Tick = ...) -> None:
        """Goes on from a saved moment; rows have been written already.

        Args:
          saved: by `save`. Its `rows` are None where the rows of that moment are lost: the loop then gathers new ones.
          tick: called while environments are brought back, with the steps done and all of them.

        Raises:
          UserError: the environments do not come back to where they were.
        """
        ...

    def warm_up(self, until: int) -> float:
        """Compiles what a run to `until` units needs, and measures the loop as it runs; call it before `restore`.

        Returns:
          Seconds for one unit once learning has begun.
        """
        ...

    def close(self) -> None:
        """Ends threads and environments."""
        ...


@runtime_checkable
class Dealing(Protocol):
    """A loop of several processes that can go on from what another number of them saved."""

    def deal(self, parts: Sequence[Saved]) -> Saved:
        """The share of this process of a moment that other processes saved, for `Loop.restore`.

        Args:
          parts: what each of them saved. All have the same tree, and the rows that have been written for this process.

        Raises:
          UserError: they cannot be dealt among the processes of this loop.
        """
        ...


def check(loop: Loop) -> None:
    """Raises a UserError if a loop cannot be driven to its end, so that no resume finds it out after days."""
    kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
    missing = [name for name in vars(Loop) if not name.startswith("_") and not hasattr(loop, name)]
    if missing:
        raise UserError(
            f"training: {kind} has no {' and no '.join(missing)}; rlcls.training.Loop lists what a loop has"
        )
    try:
        check_choice("unit", loop.unit, UNITS)
        inspect.signature(loop.restore).bind(None, None)
        if loop.unit not in loop.counts:
            raise ValueError(f"counts must have {loop.unit}, its unit, and has {', '.join(loop.counts)}")
    except TypeError:
        raise UserError(
            f"training: {kind}.restore must take (saved, tick), as rlcls.training.Loop has it"
        ) from None
    except ValueError as error:
        raise UserError(f"training: {kind}: {error}") from error


def check_same_data(before: dict[str, str] | None, now: dict[str, str] | None) -> None:
    """Raises a UserError that names the parts in which the identities of two data sets differ; None has none."""
    if before is None or now is None or before == now:
        return
    names = [name for name in before | now if before.get(name) != now.get(name)]
    changes = "; ".join(
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}" for name in names
    )
    raise UserError(
        f"the data has changed since the checkpoint: {changes}; put that data back, or begin another run with run_dir="
    )
