"""Starts several processes on this machine, and starts all of them again when one dies."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rlcls.distributed import DIED
from rlcls.runs.signals import collected

from .jobs import Job, parser, show, without_stale

_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds before the second attempt, doubled before each later one
_LAST_WORDS = 15.0  # seconds after a failure in which the other processes may end by themselves
_PROGRAM = [sys.executable, "-m", "rlcls.train"]


def main(options: list[str], jobs: list[Job]) -> int:
    """Runs the jobs one after another until one fails; returns its exit code, or 0."""
    about = "Runs a training of several processes on this machine, and starts them all again when one dies."
    parsed = parser("local", about)
    parsed.add_argument("--processes", type=int, default=2, help="number of processes; default: 2")
    parsed.add_argument("--restarts", type=int, default=10, help="attempts after the first; default: 10")
    parsed.add_argument(
        "--devices",
        type=int,
        default=0,
        help="CPU devices of each process (XLA_FLAGS); default: as XLA_FLAGS says",
    )
    parsed.add_argument(
        "--logs", type=Path, help="folder of the other processes' output; default: launches/PID"
    )
    chosen = parsed.parse_args(options)
    if chosen.processes < 1 or chosen.restarts < 0 or chosen.devices < 0:
        parsed.error("--processes must be at least 1, --restarts and --devices at least 0")
    logs = chosen.logs or Path("launches") / str(os.getpid())
    for job in jobs:
        if chosen.dry_run:
            commands = [_command(job, chosen.processes, index, "PORT") for index in range(chosen.processes)]
            show({}, commands)
            continue
        if code := _run(job, chosen.processes, chosen.restarts, chosen.devices, logs):
            return code
    return 0


def _run(job: Job, processes: int, restarts: int, devices: int, logs: Path) -> int:
    logs.mkdir(parents=True, exist_ok=True)
    received: list[int] = []
    for attempt in range(restarts + 1):
        codes = _attempt(job, processes, devices, logs, received)
        if received or not _is_death(codes):
            break
        if attempt < restarts:
            pause = min(_LONGEST_PAUSE, _PAUSE * 2**attempt)
            print(
                f"note: exit codes {codes}; attempt {attempt + 2} in {pause:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(pause)
    first_bad = next((code for code in codes if code), 0)
    return 128 - first_bad if first_bad < 0 else first_bad


def _is_death(codes: list[int]) -> bool:
    """Whether the processes ended because one of them died.

    After a user's mistake (2) or a fault (1) another attempt would fail, too. A process that a signal stopped (128 and
    more) has saved, and is not started again. If a process is killed before all have met, the others end with 2, so
    SIGKILL always counts as a death.
    """
    if -signal.SIGKILL in codes:
        return True
    return any(code == DIED or code < 0 for code in codes) and not {1, 2} & set(codes)


def _attempt(job: Job, processes: int, devices: int, logs: Path, received: list[int]) -> list[int]:
    """Starts all processes and waits for them. Returns their exit codes, -n for one that signal n killed."""
    port = _free_port()
    environment = without_stale(dict(os.environ))
    if devices:
        flag = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int) -> None:
        for process in running:
            process.send_signal(number)

    # A terminal sends Ctrl-C to all processes. Other signals come to this process alone, which passes them on.
    reactions: dict[int, Callable[[], object]] = {
        number: functools.partial(pass_on, number)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    }
    with contextlib.ExitStack() as stack, collected(reactions) as signals:
        for index in range(processes):
            output = None
            if index:
                path = logs / f"process-{index}.log"
                output = stack.enter_context(path.open("ab"))
            command = _command(job, processes, index, str(port))
            running.append(
                subprocess.Popen(
                    command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
                )
            )
        if processes > 1:
            print(
                f"{processes} processes; {logs}/process-*.log have the output of all but the first",
                flush=True,
            )
        codes = _wait(running)
        received.extend(signals)
    return codes


def _wait(running: list[subprocess.Popen[bytes]]) -> list[int]:
    """Waits until all processes have ended. Once one has failed, the others are killed after `_LAST_WORDS` seconds.

    Returns:
      Their exit codes; `DIED` for a process that was killed here.
    """
    end, late = None, []
    while None in (codes := [process.poll() for process in running]):
        if end is None and any(codes):
            end = time.monotonic() + _LAST_WORDS
        if end is not None and time.monotonic() > end:
            late += [process for process in running if process.poll() is None]
            for process in late:
                process.kill()
        time.sleep(0.05)
    return [DIED if process in late else process.returncode for process in running]


def _command(job: Job, processes: int, index: int, port: str) -> list[str]:
    if processes == 1:
        return [*_PROGRAM, *job.arguments]
    place = {"coordinator": f"127.0.0.1:{port}", "num_processes": processes, "process_id": index}
    return [*_PROGRAM, *job.arguments, *(f"distributed.{name}={value}" for name, value in place.items())]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
