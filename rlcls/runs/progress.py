"""The output of a command while it runs: a header, then a live display on a terminal, or lines in a log."""

import collections
import math
import os
import sys
import time
from types import TracebackType
from typing import Any

_LIVE_PERIOD = 0.5  # seconds between two refreshes; one takes about 2 ms of the thread that feeds the learner
_PLAIN_PERIOD = 30.0  # seconds between two lines of a log
_WINDOW = 60.0  # seconds over which the rates are measured


def header(rows: dict[str, str]) -> None:
    """Prints `rows` as two aligned columns, the names dim on a terminal."""
    width = max(map(len, rows))
    if not _on_terminal():
        print("\n".join(f"{name:{width}}  {value}" for name, value in rows.items()), flush=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        grid.add_row(Text(name, style="dim", no_wrap=True), Text(value, overflow="fold"))
    Console().print(grid)


class Progress:
    """Shows how far a command is, its speed, and the latest values that it measured.

    Use it as a context manager. Lines printed meanwhile appear above the display.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        steady_from: int = 0,
        expected_pace: float = 0.0,
        unit: str = "agent steps",
        frame_skip: int | None = None,
    ):
        """Starts the display.

        Args:
          total: the count at which the command ends, in `unit`s.
          start: the count at which it begins; more than 0 after a resume.
          steady_from: the count from which the pace is steady. Quicker counts before it do not predict the time left.
          expected_pace: seconds for one count, which predicts the time left until then; 0 predicts nothing.
          unit: what is counted.
          frame_skip: emulator frames per agent step; None shows no frames.
        """
        self._total, self._count, self._unit, self._frame_skip = total, start, unit, frame_skip
        self._steady_from, self._expected_pace = steady_from, expected_pace
        self._latest: dict[str, float | None] = {}
        self._samples = collections.deque([(time.monotonic(), start)])
        self._live = _open_live() if _on_terminal() else None
        self._period = _PLAIN_PERIOD if self._live is None else _LIVE_PERIOD
        self._next = 0.0 if self._live else time.monotonic() + _PLAIN_PERIOD

    def update(self, count: int, **latest: float | None) -> None:
        """Takes in the count and the `latest` values, and refreshes the display if its period has passed.

        Args:
          count: the present count.
          latest: numbers to show under their names, such as training_return=3.2. Each stays until a newer value
            replaces it; None shows a dash.
        """
        if self._count < self._steady_from <= count:
            self._samples = collections.deque([(time.monotonic(), count)])
        self._count = count
        if latest:
            self._latest.update(latest)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._period
            self._show(now)

    def close(self) -> None:
        """Shows the last state and ends the display. May be called twice."""
        if self._period < math.inf:
            self._period = self._next = math.inf
            self._show(time.monotonic())
            if self._live:
                self._live.stop()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show(self, now: float) -> None:
        self._samples.append((now, self._count))
        while len(self._samples) > 2 and self._samples[1][0] < now - _WINDOW:
            self._samples.popleft()
        then, before = self._samples[0]
        rate = (self._count - before) / (now - then) if now > then else 0.0
        pace = {f"{self._unit}/s": _count(rate)}
        if self._frame_skip:
            pace["frames/s"] = _count(rate * self._frame_skip)
        left = self._time_left(rate)
        latest = {name.replace("_", " "): _value(value) for name, value in self._latest.items()}
        done = f"{self._count:,} / {self._total:,} {self._unit}"
        share = self._count / max(self._total, 1)
        if self._live:
            self._live.update(_display(share, done, {**pace, "time left": left, **latest}), refresh=True)
        else:
            words = [f"{value} {name}" for name, value in pace.items()]
            words += [f"{left} left", *(f"{name} {value}" for name, value in latest.items())]
            print(f"{done} ({share:.0%})", *words, sep="  ", flush=True)

    def _time_left(self, rate: float) -> str:
        if rate and self._count >= self._steady_from:
            return _duration(max(self._total - self._count, 0) / rate)
        if self._expected_pace:  # counts before the steady pace take nearly no time
            return _duration(max(self._total - max(self._count, self._steady_from), 0) * self._expected_pace)
        return "-"


def _on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _open_live() -> Any:
    from rich.console import Console
    from rich.live import Live

    # A refreshing thread would interrupt the learner at any moment.
    live = Live(console=Console(), auto_refresh=False)
    live.start()
    return live


def _display(share: float, done: str, fields: dict[str, str]) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    first = Table.grid(expand=True, padding=(0, 2))
    first.add_column(ratio=1)
    first.add_column(no_wrap=True)
    first.add_row(ProgressBar(total=1.0, completed=min(share, 1.0)), f"{share:4.0%}  {done}")
    second = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in fields:
        second.add_column(name, justify="right", overflow="fold")
    second.add_row(*fields.values())
    return Group(first, second)


def _count(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _value(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    """`seconds` as 4:05, 1:04:05 or 2 d 3 h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
