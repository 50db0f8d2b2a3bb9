"""What a command says while it runs is readable in a log and costs the loop next to nothing."""

import io
import sys
import timeit

import pytest

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
    # Not a fixture: pytest sets its own stdout between those and the test.
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
        assert "  4:30 left" in capsys.readouterr().out.splitlines()[-1]  # 5,400 at 20 a second


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
    assert progress._duration(seconds) == text
