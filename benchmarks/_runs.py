"""Runs commands, one process on each core. The work can be stopped and continued at any time."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import _report


class Job(NamedTuple):
    """A command that saves its state at a SIGTERM, and continues from there when it runs again.

    Attributes:
      name: the name of its log and of the file that marks its end.
      command: arguments of Python.
    """

    name: str
    command: list[str]


def make(jobs: Sequence[Job], folder: Path, *, processes: int, minutes: float | None) -> bool:
    """Runs jobs in their order until all have ended or the minutes are over.

    The output of a job goes to folder/NAME.log. When a job has ended, its command is written to folder/NAME.done, and
    the same command does not run again.

    Returns:
      Whether all have ended.

    Raises:
      SystemExit: a job failed. The others are stopped, and save.
    """
    waiting = deque(job for job in jobs if not is_done(job, folder))
    free = deque(sorted(os.sched_getaffinity(0))[:processes])
    running: dict[subprocess.Popen[bytes], tuple[Job, int]] = {}
    end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and free:
                job, core = waiting.popleft(), free.popleft()
                running[_start(job, folder, core)] = job, core
            time.sleep(0.5)
            for process in [each for each in running if each.poll() is not None]:
                job, core = running.pop(process)
                free.append(core)
                if process.returncode:
                    sys.exit(f"{job.name} failed ({process.returncode}); {folder / job.name}.log says why")
                (folder / f"{job.name}.done").write_text(_text(job))
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return not waiting and not running


def is_done(job: Job, folder: Path) -> bool:
    """Whether this command has ended."""
    mark = folder / f"{job.name}.done"
    return mark.exists() and mark.read_text() == _text(job)


def _start(job: Job, folder: Path, core: int) -> subprocess.Popen[bytes]:
    print(f"{job.name}: {_text(job)}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    pinned = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
    with open(folder / f"{job.name}.log", "ab") as log:
        # In a new session Ctrl-C reaches only this process, which then stops each run once.
        return subprocess.Popen(
            [*pinned, sys.executable, *job.command],
            env=_report.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _text(job: Job) -> str:
    return " ".join(job.command)
