"""Counts the agent steps of another library and times them after its warm-up."""

import argparse
import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator

MARK = "MEASURED "


class Finished(Exception):
    """Raised inside the loop of the other library, to leave it when the measurement is complete."""


class Meter:
    """Call `step` at each agent step. The first `fill` steps fill the replay; the next `settle` compile and warm up."""

    def __init__(self, fill: int, settle: int, seconds: float):
        self.fill, self._first, self._seconds = fill, fill + settle, seconds
        self._count, self._began = 0, 0.0
        self.result: dict | None = None

    def step(self) -> None:
        self._count += 1
        if self._count == self._first:
            self._began = time.perf_counter()
        # The measurement has a multiple of 4 steps, because an update comes every 4 steps.
        elif self._count > self._first and (self._count - self._first) % 4 == 0:
            elapsed = time.perf_counter() - self._began
            if elapsed >= self._seconds:
                steps = self._count - self._first
                self.result = {"agent_steps": steps, "seconds": elapsed, "steps_per_second": steps / elapsed}
                raise Finished


def measure(
    packages: tuple[str, ...], run: Callable[[Meter, argparse.Namespace], None], *options: str
) -> None:
    """The command line of a driver: runs the other library until `Finished`, and prints one line of JSON."""
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
