"""Several processes on this machine restart together, and end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlcls.launch import local
from rlcls.launch.__main__ import main
from rlcls.launch.local import _is_death

TRAIN = ["agent=dqn", "game=Pong", "seed=3"]


def launch(*options, arguments=TRAIN):
    return main(["local", "--processes", "2", *options, "--", *arguments])


def test_a_run_gets_its_arguments_and_a_place_and_no_stale_variables(machine, monkeypatch):
    machine.plan("done")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "10.0.0.1:8080")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:8080")
    assert launch("--devices", "4") == 0
    for index in (0, 1):
        (begun,) = machine.trained(index)
        assert begun["arguments"][:3] == TRAIN and begun["place"][1:3] == [2, index]
        assert not {"MEGASCALE_COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS"} & begun["variables"].keys()
        assert begun["variables"]["XLA_FLAGS"].endswith("--xla_force_host_platform_device_count=4")


@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_death_all_processes_restart_at_another_address(machine, capfd, victim):
    machine.plan(f"die {victim}", "done")
    assert launch() == 0
    for index in (0, 1):
        first, second = machine.trained(index)
        assert first["place"][0] != second["place"][0]
    assert "attempt 2 in 0 s" in capfd.readouterr().err


def test_the_number_of_restarts_is_limited(machine):
    machine.plan("die 1", "die 1", "die 1")
    assert launch("--restarts", "1") == 75
    assert len(machine.trained(0)) == 2


def test_a_users_mistake_causes_no_restart(machine, capfd):
    machine.plan("mistake")
    assert launch() == 2
    assert len(machine.trained(0)) == 1
    assert "failed: the disk is full" in capfd.readouterr().err


def test_process_0_writes_to_the_terminal_and_the_others_to_named_files(machine, capfd):
    machine.plan("done")
    assert launch("--logs", "logs") == 0
    output = capfd.readouterr().out
    assert "done on process 0" in output and "done on process 1" not in output
    assert "logs/process-*.log have the output of all but the first" in output
    assert "done on process 1" in Path("logs/process-1.log").read_text()


def test_a_signal_is_passed_on_and_causes_no_restart(machine):
    machine.plan("wait", "done")
    code = (
        "import sys; from rlcls.launch import local; "
        f"local._PROGRAM = [{str(machine.folder / 'bin' / 'train')!r}, '-m', 'rlcls.train']; "
        "from rlcls.launch.__main__ import main; sys.exit(main())"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, "local", "--", *TRAIN])
    end = time.monotonic() + 60
    while not all((machine.folder / f"begun-{index}-0").exists() for index in (0, 1)):
        assert time.monotonic() < end and launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30) == 143
    assert len(machine.trained(0)) == 1
    for index in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(machine.trained(index)[0]["pid"], 0)


def test_each_run_of_a_sweep_is_a_job(machine):
    machine.plan("done", "done")
    assert launch(arguments=["--multirun", "agent=dqn", "game=Pong", "seed=0,1"]) == 0
    assert [each["arguments"][2] for each in machine.trained(1)] == ["seed=0", "seed=1"]


def test_a_process_that_outlives_a_mistake_of_another_is_killed_and_not_counted_as_dead(monkeypatch):
    monkeypatch.setattr(local, "_LAST_WORDS", 0.2)
    running = [subprocess.Popen(["sleep", "60"]), subprocess.Popen(["sh", "-c", "exit 2"])]
    codes = local._wait(running)
    assert codes == [75, 2] and not _is_death(codes)


def test_a_dry_run_prints_the_commands_and_starts_nothing(machine, capfd):
    assert launch("--dry-run") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["distributed.process_id=0", "distributed.process_id=1"]
    assert machine.trained(0) == [] and not os.path.exists("launches")


@pytest.mark.parametrize(
    ("codes", "death"),
    [
        ([75, -9], True),
        ([75, 75], True),
        ([-11, 75], True),
        ([0, 0], False),
        ([2, 2], False),
        ([1, 1], False),
        ([2, 75], False),
        ([2, -9], True),
        ([143, 143], False),
    ],
)
def test_only_deaths_cause_a_restart(codes, death):
    assert _is_death(codes) == death
