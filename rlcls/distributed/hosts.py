"""The interface to the processes of one run, and its implementation for a run of a single process."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Hosts(Protocol):
    """The processes of a run, seen from one of them.

    All processes must call `gather`, `broadcast` and `stops` equally often and in the same order.

    Attributes:
      index: the number of this process, from 0.
      count: the number of processes.
    """

    index: int
    count: int

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, ordered by `index`, on every process. It returns once all have called it.

        Args:
          value: JSON-able.
        """
        ...

    def broadcast(self, value: Any) -> Any:
        """The value of process 0, on every process. Values of other processes are ignored."""
        ...

    def stops(self, *, asked: bool) -> bool:
        """Whether all processes stop at this call. Each makes one call between two steps.

        Args:
          asked: whether this process was asked to stop. All processes then stop at the same later call.
        """
        ...

    def ask_stop(self) -> None:
        """Asks all processes to stop, without waiting for the next `stops(asked=True)`. Signal handlers may call it."""
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
