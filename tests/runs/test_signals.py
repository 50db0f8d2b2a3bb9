"""Signals ask a command to end, and do not end it while it saves."""

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import termios

import pytest

from rlcls.runs.signals import collected

FILE = importlib.util.find_spec("rlcls.runs.signals").origin


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_the_first_signal_of_each_kind_is_collected_and_handlers_come_back(number):
    before, seen = signal.getsignal(number), []
    with collected({number: lambda: seen.append("reaction")}) as received:
        os.kill(os.getpid(), number)
        assert received == [number] and seen == ["reaction"]
        if number in (signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            assert received == [number]
    assert signal.getsignal(number) == before


def test_under_nohup_a_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with collected() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_whose_terminal_closes_can_still_print_and_save(tmp_path):
    code = f"""
import runpy, time
collected = runpy.run_path({FILE!r})["collected"]
with collected() as received:
    print("ready", flush=True)
    while not received:
        time.sleep(0.01)
    print("saving", flush=True)
    open({str(tmp_path / "saved")!r}, "w").write(str(received))
"""

    def take_terminal():
        os.setsid()
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)

    ours, its = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=its, stdout=its, stderr=its, preexec_fn=take_terminal
    )
    os.close(its)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "saved").read_text() == str([signal.SIGHUP.value])
