"""The header and the progress of a command: a live display on a terminal, or lines in a log."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from rlcls import phases
from rlcls.phases import Phase, duration, on_terminal
from rlcls.training.loop import Tick

UNMEASURED = 0.1
"""Expected time of evaluations and checkpoints, as a share of the training time, until each has been measured."""

_WINDOW = 60.0  # seconds over which the rates are measured


def header(rows: dict[str, str]) -> None:
    """Prints `rows` as two aligned columns, the names dim on a terminal."""
    width = max(map(len, rows))
    if not on_terminal():
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
    """Shows the progress of a command, its speed, and its latest values.

    Use it as a context manager. Other output appears above the display.
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
          total: the count at the end of the command.
          start: the count at its beginning, more than 0 after a resume.
          steady_from: the count from which the speed is steady. Faster counts before it do not predict the time left.
          expected_pace: seconds per count, which predicts the time left until `steady_from`; 0 predicts nothing.
          unit: the name of the unit, in the plural.
          frame_skip: emulator frames per agent step; None shows no frames.
        """
        self._total, self._count, self._unit, self._frame_skip = total, start, unit, frame_skip
        self._steady_from, self._expected_pace = steady_from, expected_pace
        self._latest: dict[str, float | None] = {}
        self._phase: Phase | None = None
        self._paused = 0.0  # seconds spent in phases, which the rates leave out
        self._periods: dict[str, int] = {}  # counts between two phases, by their names
        self._seconds: dict[str, float] = {}  # the time of the latest phase of each name
        self._samples = collections.deque([(self._clock(), start)])
        self._live = _open_live() if on_terminal() else None
        self._period = phases.PLAIN_PERIOD if self._live is None else phases.LIVE_PERIOD
        self._next = 0.0 if self._live else time.monotonic() + phases.PLAIN_PERIOD

    def expect(self, periods: Mapping[str, int]) -> None:
        """Announces phases, so that the time left includes them.

        Args:
          periods: counts between two phases of each name. Each phase also occurs at the end.
        """
        self._periods = dict(periods)

    def update(self, count: int, **latest: float | None) -> None:
        """Sets the count and the `latest` values, and refreshes the display if its period has passed.

        Args:
          count: the current count.
          latest: numbers to show by name, such as training_return=3.2. A number is shown until a newer one replaces it;
            None shows a dash.
        """
        if self._count < self._steady_from <= count:
            self._samples = collections.deque([(self._clock(), count)])
        self._count = count
        if latest:
            self._latest.update(latest)
        self._refresh()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Tick]:
        """Shows a phase during which the count stands still, such as an evaluation. The rates exclude its time.

        Yields:
          A function to call often, with the work done and all work.
        """
        phase = self._phase = Phase(name)

        def tick(done: int, total: int) -> None:
            phase.tick(done, total)
            self._refresh()

        try:
            if self._live:  # the block may not call `tick` before its end
                self._show()
            yield tick
            self._seconds[name] = phase.seconds()
        finally:
            self._paused += phase.seconds()
            self._phase = None

    def close(self) -> None:
        """Shows the last state and ends the display. May be called twice."""
        if self._period < math.inf:
            self._period = self._next = math.inf
            with contextlib.suppress(OSError):  # the caller's output raises the same error, which is reported
                self._show()
            if self._live:
                self._live.stop()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _clock(self) -> float:
        """Seconds, without the time spent in phases."""
        return (self._phase.begun if self._phase else time.monotonic()) - self._paused

    def _refresh(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._period
            self._show()

    def _show(self) -> None:
        now = self._clock()
        if self._samples[-1] != (now, self._count):
            self._samples.append((now, self._count))
        while len(self._samples) > 2 and self._samples[1][0] < now - _WINDOW:
            self._samples.popleft()
        then, before = self._samples[0]
        rate = (self._count - before) / (now - then) if now > then else 0.0
        pace = {f"{self._unit}/s": _rate(rate)}
        if self._frame_skip:
            pace["frames/s"] = _rate(rate * self._frame_skip)
        left = self._time_left(rate)
        latest = {name.replace("_", " "): _value(value) for name, value in self._latest.items()}
        done = f"{self._count:,} / {self._total:,} {self._unit}"
        share = self._count / max(self._total, 1)
        phase = str(self._phase) if self._phase else ""
        if self._live:
            self._live.update(
                _display(share, done, {**pace, "time left": left, **latest}, phase), refresh=True
            )
        else:
            words = [f"{value} {name}" for name, value in pace.items()]
            words += [f"{left} left", *(f"{name} {value}" for name, value in latest.items())]
            print(f"{done} ({share:.0%})", *words, *filter(None, [phase]), sep="  ", flush=True)

    def _time_left(self, rate: float) -> str:
        training = self._training_left(rate)
        if training is None:
            return "-"
        seconds = training
        if self._periods.keys() <= self._seconds.keys():
            for name, every in self._periods.items():
                seconds += self._seconds[name] * _still_to_come(every, self._count, self._total)
        else:
            seconds *= 1 + UNMEASURED
        if self._phase is None:
            return duration(seconds)
        rest = self._phase_left(self._phase)
        if rest is not None:
            return duration(seconds + rest)
        return f"> {duration(seconds)}" if self._phase.total else duration(seconds)

    def _training_left(self, rate: float) -> float | None:
        """Seconds of training left; None if they cannot be predicted."""
        if self._count >= self._total:
            return 0.0
        if rate and self._count >= self._steady_from:
            return (self._total - self._count) / rate
        if self._expected_pace:  # counts before `steady_from` take almost no time
            return (self._total - max(self._count, self._steady_from)) * self._expected_pace
        return None

    def _phase_left(self, phase: Phase) -> float | None:
        """Seconds left of a phase, from the duration of the last phase of its name or from the work done.

        The result is None if they cannot be predicted.
        """
        seconds = phase.seconds()
        if seconds < self._seconds.get(phase.name, 0.0):
            return self._seconds[phase.name] - seconds
        return seconds * (phase.total - phase.done) / phase.done if phase.done else None


def _still_to_come(every: int, count: int, total: int) -> int:
    """The number of phases left: multiples of `every` in (count, total], and one at `total` in any case."""
    if count >= total:
        return 0
    return total // every - count // every + (total % every != 0)


def _open_live() -> Any:
    from rich.console import Console
    from rich.live import Live

    # Without auto_refresh no other thread interrupts the learner.
    live = Live(console=Console(), auto_refresh=False)
    live.start()
    return live


def _display(share: float, done: str, fields: dict[str, str], phase: str) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    first = Table.grid(expand=True, padding=(0, 2))
    first.add_column(ratio=1)
    first.add_column(no_wrap=True)
    first.add_row(ProgressBar(total=1.0, completed=min(share, 1.0)), f"{share:4.0%}  {done}")
    second = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in fields:
        second.add_column(name, justify="right", overflow="fold")
    second.add_row(*fields.values())
    return Group(first, second, *([Text(phase, style="bold")] if phase else []))


def _rate(rate: float) -> str:
    """A speed; a dash if it is 0, because nothing has been counted yet."""
    if not rate:
        return "-"
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _value(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
