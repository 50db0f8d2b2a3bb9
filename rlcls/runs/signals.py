"""Signals that ask a command to end, collected so that it ends between two steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any


@contextlib.contextmanager
def collected(reactions: Mapping[int, Callable[[], object]] = MappingProxyType({})) -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C in the list that it yields; a second one takes its usual course.

    Args:
      reactions: what else to do when a signal comes, by its number.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        # A second Ctrl-C raises an exception, so that the display restores the cursor.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else before[number])
        if number in reactions:
            reactions[number]()

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
