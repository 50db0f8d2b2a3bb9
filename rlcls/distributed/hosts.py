"""The interface of the processes of one run, and that of a run of a single process."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Hosts(Protocol):
    """The processes of a run, seen from one of them.

    All call `gather`, `broadcast` and `stops` equally often and in the same order.

    Attributes:
      index: the number of this process, from 0.
      count: the number of processes.
    """

    index: int
    count: int

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in their order, on every process; nobody goes on before all have come.

        Args:
          value: JSON-able.
        """
        ...

    def broadcast(self, value: Any) -> Any:
        """The value of process 0, on every process; the others' values are ignored."""
        ...

    def stops(self, *, asked: bool) -> bool:
        """Whether all processes stop at this call, which each makes between two steps.

        Args:
          asked: whether something asks this process to stop. All then stop at the same one of the next calls.
        """
        ...

    def ask_stop(self) -> None:
        """Asks all processes to stop, as `stops(asked=True)` does later; a signal handler may call it."""
        ...

    @property
    def stop_asked(self) -> bool:
        """Whether another process is known to have asked for a stop."""
        ...


class _Alone:
    """A run of one process."""

    index, count = 0, 1
    stop_asked = False

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value

    def stops(self, *, asked: bool) -> bool:
        return asked

    def ask_stop(self) -> None:
        pass


ALONE: Hosts = _Alone()
"""The only process of a run."""
