"""A generated script is queued, warned before the time limit, and queued again, as on a cluster."""

from pathlib import Path

from rlcls.launch.__main__ import main

TRAIN = ["agent=dqn", "game=Pong", "mesh.rules=[[layers/1/kernel,[null,model]]]"]


def launch(machine, *options):
    python = str(machine.folder / "bin" / "train")
    return main(["slurm", "--nodes", "2", "--tasks", "2", "--python", python, *options, "--", *TRAIN])


def log():
    (path,) = Path("launches").glob("*.log")
    return path.read_text()


def test_all_tasks_of_all_nodes_meet_through_slurms_variables(machine):
    machine.plan("done")
    assert launch(machine) == 0
    for index in range(4):
        (begun,) = machine.trained(index)
        assert begun["arguments"] == TRAIN
        assert begun["place"][0].startswith("localhost:") and begun["place"][1:3] == [4, index]
    assert machine.calls("scontrol") == []


def test_stale_variables_are_unset_and_the_setup_runs_first(machine, monkeypatch):
    machine.plan("done")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "10.0.0.1:8080")
    assert launch(machine, "--setup", "export SETUP=done") == 0
    variables = machine.trained(3)[0]["variables"]
    assert "MEGASCALE_COORDINATOR_ADDRESS" not in variables and variables["SETUP"] == "done"


def test_a_death_queues_the_job_again_at_another_address(machine):
    machine.plan("die 2", "done")
    assert launch(machine) == 0
    assert machine.calls("scontrol") == [["requeue", "100"]]
    first, second = machine.trained(0)
    assert first["place"][0] != second["place"][0]
    assert "process 2 of 4" in log() and "exit code 137: queued again" in log()


def test_before_the_time_limit_all_tasks_stop_and_the_job_is_queued_again(machine):
    machine.plan("wait", "done")
    machine.touch("warn")
    assert launch(machine) == 0
    assert machine.calls("scontrol") == [["requeue", "100"]]
    assert "exit code 143: queued again" in log()


def test_a_job_that_its_user_cancels_is_not_queued_again(machine):
    machine.plan("wait", "done")
    machine.touch("cancel")
    assert launch(machine) == 0
    assert machine.calls("scontrol") == [] and len(machine.trained(0)) == 1


def test_a_mistake_is_not_queued_again(machine):
    machine.plan("mistake")
    assert launch(machine) == 0
    assert machine.calls("scontrol") == [] and "error: the disk is full" in log()


def test_the_number_of_restarts_is_limited(machine):
    machine.plan("die 0", "die 0", "die 0")
    assert launch(machine, "--restarts", "1") == 0
    assert len(machine.calls("scontrol")) == 1 and len(machine.trained(1)) == 2


def test_each_run_of_a_sweep_is_a_job(machine):
    machine.plan("done", "done")
    python = str(machine.folder / "bin" / "train")
    assert main(["slurm", "--python", python, "--", "--multirun", "agent=dqn", "game=Pong,Breakout"]) == 0
    assert machine.calls("sbatch") == [
        ["launches/rlcls-dqn-pong-0.sbatch"],
        ["launches/rlcls-dqn-breakout-1.sbatch"],
    ]
    assert [each["arguments"][1] for each in machine.trained(0)] == ["game='Pong'", "game='Breakout'"]
