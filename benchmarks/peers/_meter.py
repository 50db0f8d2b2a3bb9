"""Counts a peer's agent steps and times them once it learns at its steady pace."""

import argparse
import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator

MARK = "MEASURED "


class Finished(Exception):
    """The measurement is complete: raised inside the peer's loop, to leave it."""


class Meter:
    """Call `step` once an agent step. The first `fill` fill the replay, `settle` more compile and warm up."""

    def __init__(self, fill: int, settle: int, seconds: float):
        self.fill, self._first, self._seconds = fill, fill + settle, seconds
        self._count, self._began = 0, 0.0
        self.result: dict | None = None

    def step(self) -> None:
        self._count += 1
        if self._count == self._first:
            self._began = time.perf_counter()
        # Whole periods of 4, so that every step measured has its quarter of an update.
        elif self._count > self._first and (self._count - self._first) % 4 == 0:
            elapsed = time.perf_counter() - self._began
            if elapsed >= self._seconds:
                steps = self._count - self._first
                self.result = {"agent_steps": steps, "seconds": elapsed, "steps_per_second": steps / elapsed}
                raise Finished


def measure(
    packages: tuple[str, ...], run: Callable[[Meter, argparse.Namespace], None], *options: str
) -> None:
    """The command line of a driver: runs the peer until the meter has enough, and prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fill", type=int, default=2000, help="agent steps before the first update")
    parser.add_argument("--settle", type=int, default=400, help="agent steps with updates before the clock")
    parser.add_argument("--seconds", type=float, default=30.0)
    for option in options:
        parser.add_argument(option)
    arguments = parser.parse_args()
    meter = Meter(arguments.fill, arguments.settle, arguments.seconds)
    try:
        with contextlib.redirect_stdout(sys.stderr), _until_finished():
            run(meter, arguments)
        line = {**(meter.result or {}), "versions": {name: _version(name) for name in packages}}
    except ImportError as error:
        line = {"missing": str(error)}
    print(MARK + json.dumps(line), flush=True)


@contextlib.contextmanager
def _until_finished() -> Iterator[None]:
    with contextlib.suppress(Finished):
        yield


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
