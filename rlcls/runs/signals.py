"""Collects signals that ask a command to end, so that it can end between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

# The signals of a closing terminal and of a cluster's warning. They may come several times; only the first counts.
_WARNINGS = (signal.SIGHUP, signal.SIGUSR1)


class Stopped(Exception):
    """Raised by a tick after a signal, to interrupt the current work."""


def unless_stopped(
    stopped: Callable[[], bool], tick: Callable[[int, int], object]
) -> Callable[[int, int], None]:
    """`tick`, but it raises `Stopped` after a signal."""

    def checked(done: int, total: int) -> None:
        if stopped():
            raise Stopped
        tick(done, total)

    return checked


@contextlib.contextmanager
def collected(reactions: Mapping[int, Callable[[], object]] = MappingProxyType({})) -> Iterator[list[int]]:
    """Collects SIGTERM, Ctrl-C, SIGHUP and SIGUSR1 in the list that it yields.

    A second SIGTERM or Ctrl-C has its usual effect. A second SIGHUP or SIGUSR1 is ignored. Under nohup, SIGHUP stays
    ignored.

    Args:
      reactions: functions to call when a signal comes, by its number.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        if number in _WARNINGS:
            signal.signal(number, signal.SIG_IGN)
        else:
            # A second Ctrl-C raises an exception, so that the display restores the cursor.
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else before[number])
        if number == signal.SIGHUP:
            _leave_terminal(terminals)
        if number in reactions:
            reactions[number]()

    terminals = [number for number in (1, 2) if os.isatty(number)]
    before: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, *_WARNINGS)
    }
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_terminal(descriptors: list[int]) -> None:
    """Discards output to a closed terminal, because writing there would raise before the run is saved."""
    for number in descriptors:
        if not os.isatty(number):
            discard(number)


def discard(number: int) -> None:
    """Redirects a file descriptor to /dev/null."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, number)
    os.close(descriptor)
