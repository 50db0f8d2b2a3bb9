"""The progress of a command is readable in a log and takes almost no time."""

import contextlib
import io
import subprocess
import sys
import time
import timeit

import pytest

from rlcls import phases
from rlcls.runs import Progress, progress
from rlcls.runs.progress import header


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_terminal(monkeypatch):
    # This is not a fixture, because pytest replaces stdout after fixtures.
    monkeypatch.setattr(sys, "stdout", Terminal())
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    return sys.stdout


def test_a_log_gets_a_line_every_half_minute_and_one_at_the_end(clock, capsys):
    with Progress(2000, frame_skip=4) as display:
        for step in range(0, 1200, 10):
            clock.now += 1
            display.update(step, training_return=-3.25, evaluation_return=None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 120 // 30 + 1
    assert lines[0].startswith("290 / 2,000 agent steps (14%)")
    assert lines[-1].startswith("1,190 / 2,000 agent steps (60%)  10 agent steps/s  40 frames/s  1:21 left")
    assert lines[-1].endswith("training return -3.25  evaluation return -")


def test_before_anything_is_counted_the_rates_are_dashes(clock, capsys):
    with Progress(500, start=400, frame_skip=4) as display:
        clock.now += 1
        display.update(400)
    assert "  - agent steps/s  - frames/s  " in capsys.readouterr().out


def test_the_rates_are_those_of_the_last_minute(clock, capsys):
    with Progress(10**6, start=500_000, unit="episodes") as display:
        for second in range(600):
            clock.now += 1
            display.update(500_000 + (1000 * second if second < 300 else 300_000 + 10 * (second - 300)))
    last = capsys.readouterr().out.splitlines()[-1]
    assert "10 episodes/s" in last and "frames" not in last


def test_steps_before_the_first_update_say_nothing_of_the_time_left(clock, capsys):
    with Progress(10_000, steady_from=5000) as display:
        for count in [*range(0, 5000, 100), *range(5000, 5600, 10)]:
            clock.now += 1
            display.update(count)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "97 agent steps/s" in first and "  - left" in first
    assert "10 agent steps/s" in last and "7:21 left" in last


def test_before_the_first_update_the_time_left_is_what_the_updates_measured_beforehand_will_take(
    clock, capsys
):
    with Progress(10_000, steady_from=4000, expected_pace=0.1) as display:
        for count in (0, 1000, 3999):
            clock.now += 30
            display.update(count)
            assert "  10:00 left" in capsys.readouterr().out  # 6,000 counts at 0.1 seconds
        for count in (4000, 4600):
            clock.now += 30
            display.update(count)
        assert "  4:30 left" in capsys.readouterr().out.splitlines()[-1]  # 5,400 at 20 per second


def test_an_evaluation_says_what_is_done_and_when_it_ends_and_is_left_out_of_the_rates(clock, capsys):
    with Progress(4000, unit="agent steps") as display:
        display.expect({"evaluating": 1000})
        for count in range(0, 1001, 100):
            display.update(count)
            clock.now += 1
        with display.phase("evaluating") as tick:
            for done in (0, 0, 5, 9):
                clock.now += 30
                tick(done, 10)
        display.update(1001)
    *during, last = capsys.readouterr().out.splitlines()
    assert len(during) == 4 and all("91 agent steps/s" in line for line in during)
    # Training and a tenth take 0:36 more; an evaluation cannot be predicted before its first episode has ended.
    assert "  > 0:36 left" in during[0] and during[0].endswith("  evaluating: 0 of 10 done (0:30)")
    assert "  2:06 left" in during[2] and during[2].endswith("  evaluating: 5 of 10 done (1:30)")
    # 2,999 steps at 91 per second, and three more evaluations of two minutes.
    assert "91 agent steps/s" in last and "  6:33 left" in last and "evaluating" not in last


def test_an_evaluation_is_expected_to_take_as_long_as_the_one_before(clock, capsys):
    with Progress(2000, start=1000) as display:
        display.expect({"evaluating": 500})
        for count in (1500, 2000):
            clock.now += 50
            display.update(count)
            capsys.readouterr()
            with display.phase("evaluating") as tick:
                clock.now += 40
                tick(1, 10)
                clock.now += 80
    assert "(100%)" in (line := capsys.readouterr().out.splitlines()[0]) and "  1:20 left" in line


@pytest.mark.parametrize(
    ("every", "count", "total", "times"),
    [(10, 0, 100, 10), (10, 95, 100, 1), (10, 100, 100, 0), (30, 30, 100, 3), (500, 0, 100, 1)],
)
def test_a_phase_comes_at_each_multiple_of_its_period_and_at_the_end(every, count, total, times):
    assert progress._still_to_come(every, count, total) == times


def test_a_phase_that_fails_predicts_nothing(clock, capsys):
    with Progress(2000) as display:
        display.expect({"evaluating": 500})
        with contextlib.suppress(KeyError), display.phase("evaluating"):
            clock.now += 40
            raise KeyError
        clock.now += 1
        display.update(1000)
    assert "  0:01 left" in capsys.readouterr().out


def test_a_long_phase_before_the_run_is_a_line_in_a_log_and_a_short_one_is_not(monkeypatch, capsys):
    monkeypatch.setattr(phases, "PATIENCE", 0.02)
    with phases.phase("compiling"):
        pass
    assert capsys.readouterr().out == ""
    with phases.phase("replaying actions") as tick:
        tick(1000, 2000)
        time.sleep(0.1)
    assert capsys.readouterr().out == "replaying actions: 1,000 of 2,000 done (0:00)\n"


def test_a_command_can_say_that_it_starts_before_it_imports_anything_slow():
    heavy = "{'jax', 'numpy', 'flax', 'hydra', 'matplotlib'}"
    code = f"import sys, rlcls.train; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_phase_before_the_run_is_one_line_of_a_terminal_that_vanishes(monkeypatch):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setattr(phases, "LIVE_PERIOD", 0.02)
    with phases.phase("compiling"):
        time.sleep(0.1)
    *shown, end = terminal.getvalue()[1:].split("\r")
    assert shown[0] == "compiling (0:00)\x1b[K" and end == "\x1b[K"


def test_a_terminal_shows_a_phase_below_the_bar(clock, monkeypatch):
    terminal = open_terminal(monkeypatch)
    with Progress(100) as display, display.phase("saving a checkpoint"):
        clock.now += 1
    assert "saving a checkpoint (0:00)" in terminal.getvalue()


def test_a_terminal_gets_a_bar_that_fits_and_keeps_what_is_printed_meanwhile(clock, monkeypatch):
    terminal = open_terminal(monkeypatch)
    with Progress(2_000_000, frame_skip=4) as display:
        for step in range(0, 10_000, 100):
            clock.now += 0.1
            latest = {"training_return": 12.5, "evaluation_return": 14.0, "loss": 1.8234}
            display.update(step, **latest)
            if step == 5000:
                print("a remark")
    text = terminal.getvalue()
    assert "a remark" in text and "1.82" in text and "━" in text
    assert "2,000,000 agent steps" in text


def test_closing_twice_says_nothing_twice(clock, capsys):
    display = Progress(10)
    display.close()
    display.close()
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.untyped  # the check costs more than the update
def test_an_update_costs_microseconds():
    display = Progress(10**9)
    calls = 20_000
    seconds = min(timeit.repeat(lambda: display.update(5, loss=1.0), number=calls, repeat=3))
    assert seconds / calls < 20e-6


def test_a_header_is_two_columns(capsys):
    header({"game": "Pong", "run folder": "runs/a"})
    assert capsys.readouterr().out == "game        Pong\nrun folder  runs/a\n"


def test_a_header_on_a_terminal_wraps_beside_its_name(monkeypatch):
    terminal = open_terminal(monkeypatch)
    header({"game": "Pong", "protocol": "word " * 30})
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 4 and "protocol" in lines[1]
    assert lines[2].startswith(" " * 10 + "word")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (245, "4:05"), (3845, "1:04:05"), (59.6, "1:00"), (200_000, "2 d 7 h")]
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert phases.duration(seconds) == text
