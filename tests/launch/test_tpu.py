"""A generated script requests a slice, trains on its workers, restarts after a death, and deletes the slice."""

from rlcls.launch.__main__ import main

TRAIN = ["agent=dqn", "game=Pong", "mesh.rules=[[layers/1/kernel,[null,model]]]"]


def launch(*options):
    required = ["--type", "v5litepod-16", "--zone", "europe-west4-b", "--runs", "/mnt/runs", "--poll", "0"]
    return main(["tpu", *required, *options, "--", *TRAIN])


def verbs(machine):
    return [call[3] for call in machine.calls("gcloud") if call[3] != "describe"]


ONCE = ["create", "scp", "ssh", "ssh"]  # create the slice, copy the checkout, install it, train
END = ["ssh", "delete"]


def test_a_slice_is_created_used_by_all_workers_and_deleted(machine):
    machine.plan("done")
    assert launch("--spot", "--project", "me", "--mount", "touch ~/mounted") == 0
    assert verbs(machine) == [*ONCE, *END]
    create = machine.calls("gcloud")[1]
    assert create == [
        *("compute", "tpus", "queued-resources", "create", "rlcls-dqn-pong", "--node-id=rlcls-dqn-pong"),
        *("--zone=europe-west4-b", "--project=me", "--accelerator-type=v5litepod-16"),
        *("--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    for index in (0, 1):
        (begun,) = machine.trained(index)
        assert begun["place"][1:3] == [2, index]
        assert begun["arguments"] == [*TRAIN, "run_dir=/mnt/runs/rlcls-dqn-pong"]
        assert "MEGASCALE_NUM_SLICES" not in begun["variables"]
    installs = [call for call in machine.calls("uv") if call[0] == "pip"]
    assert [call[-1] for call in installs] == [".[atari,tpu]"] * 2


def test_the_workers_get_the_checkout_without_runs_and_environments(machine):
    machine.plan("done")
    for name in ("rlcls/train.py", "runs/a/metrics.jsonl", ".venv/bin/python", ".git/HEAD"):
        path = machine.folder.parent / "work" / name
        path.parent.mkdir(parents=True)
        path.touch()
    assert launch("--keep") == 0
    copied = {
        str(path.relative_to(machine.folder / "worker-1" / "rlcls"))
        for path in (machine.folder / "worker-1" / "rlcls").rglob("*")
        if path.is_file()
    }
    assert copied == {"pyproject.toml", "rlcls/train.py"}


def test_a_slice_can_be_kept_and_used_again(machine):
    machine.plan("done", "done")
    assert launch("--keep") == 0 and launch() == 0
    assert verbs(machine) == [*ONCE, "ssh", *ONCE[1:], *END]


def test_after_a_death_training_restarts_on_the_same_slice(machine):
    machine.plan("die 1", "done")
    assert launch() == 0
    assert verbs(machine) == [*ONCE, *ONCE[1:], *END]
    assert len(machine.trained(0)) == len(machine.trained(1)) == 2


def test_a_preempted_slice_is_created_again(machine):
    machine.plan("die 0", "done")
    machine.touch("preempt")
    assert launch("--spot") == 0
    assert verbs(machine) == [*ONCE, "delete", *ONCE, *END]


def test_after_a_users_mistake_the_slice_is_deleted_without_a_restart(machine):
    machine.plan("mistake")
    assert launch() == 2
    assert verbs(machine) == [*ONCE, *END] and len(machine.trained(0)) == 1


def test_a_training_that_lost_its_connection_ends_before_the_next_one_starts(machine):
    machine.plan("wait", "done")
    machine.touch("lose")
    assert launch() == 0
    for index in (0, 1):
        assert [each["earlier ones live"] for each in machine.trained(index)] == [False, False]


def test_a_worker_to_which_gcloud_reconnects_ends_the_attempt(machine):
    machine.plan("wait", "done")
    machine.touch("reconnect")
    assert launch() == 0
    for index in (0, 1):
        assert [each["earlier ones live"] for each in machine.trained(index)] == [False, False]


def test_after_the_last_restart_the_slice_is_deleted(machine):
    machine.plan("die 0", "die 0")
    assert launch("--restarts", "1") in (75, 137)
    assert verbs(machine) == [*ONCE, *ONCE[1:], *END]


def test_outside_a_checkout_the_error_is_one_line(machine, capfd):
    (machine.folder.parent / "work" / "pyproject.toml").unlink()
    assert launch() == 2
    assert "must be a checkout of rlcls" in capfd.readouterr().err
    assert machine.calls("gcloud") == []


def test_a_dry_run_prints_the_script_and_requests_nothing(machine, capfd):
    assert launch("--dry-run") == 0
    text = capfd.readouterr().out
    assert text.startswith("--- launches/rlcls-dqn-pong.sh\n#!/bin/bash\n")
    assert text.endswith("$ bash launches/rlcls-dqn-pong.sh\n")
    assert machine.calls("gcloud") == []
