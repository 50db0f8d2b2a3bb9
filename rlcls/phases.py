"""Phases in which a command counts nothing, shown while they last, also while the command imports its packages."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

LIVE_PERIOD = 0.5  # seconds between two refreshes; one takes about 2 ms of the thread that feeds the learner
PLAIN_PERIOD = 30.0  # seconds between two lines of a log
PATIENCE = 5.0  # seconds that a phase before the run takes until a log mentions it


@contextlib.contextmanager
def phase(name: str) -> Iterator[Callable[[int, int], object]]:
    """Shows the name of a phase before the run, such as "compiling", and the time that it has taken so far.

    A terminal shows it in one line that vanishes at the end. A log gets a line after 5 seconds, then every half minute.

    Yields:
      A function to call with the amount done and the whole amount, where these are known.
    """
    current, terminal, over = Phase(name), on_terminal(), threading.Event()

    def show() -> None:
        wait = LIVE_PERIOD if terminal else PATIENCE
        while not over.wait(wait):
            with contextlib.suppress(OSError):  # the caller's own output meets the same error and reports it
                print(f"\r{current}\x1b[K" if terminal else current, end="" if terminal else "\n", flush=True)
            wait = LIVE_PERIOD if terminal else PLAIN_PERIOD

    thread = threading.Thread(target=show, name="phase", daemon=True)
    thread.start()
    try:
        yield current.tick
    finally:
        over.set()
        thread.join()
        if terminal:
            print("\r\x1b[K", end="", flush=True)


@dataclasses.dataclass
class Phase:
    """A part of a run that is not training, such as an evaluation.

    Attributes:
      name: the name that the display shows.
      begun: the monotonic clock when it began, in seconds.
      done: the amount done.
      total: the whole amount; 0 where it is not known.
    """

    name: str
    begun: float = dataclasses.field(default_factory=lambda: time.monotonic())
    done: int = 0
    total: int = 0

    def tick(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def __str__(self) -> str:
        amount = f": {self.done:,} of {self.total:,} done" if self.total else ""
        return f"{self.name}{amount} ({duration(self.seconds())})"


def duration(seconds: float) -> str:
    """`seconds` as 4:05, 1:04:05 or 2 d 3 h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
