"""What is generated for SLURM, Google Cloud and SkyPilot, run against stand-ins of their commands."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

from rlcls.launch.__main__ import main

TRAIN = ["agent=dqn", "game=Pong", "run_dir=a b", "seed=3"]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a shell script of that name on PATH; it appends its arguments to calls.txt first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.txt"))
    monkeypatch.chdir(tmp_path)

    def stand_in(name, body="true"):
        path = folder / name
        # %q writes each argument as a shell would read it.
        path.write_text(f'#!/bin/bash\necho "{name}$(printf " %q" "$@")" >> "$CALLS"\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return stand_in


def calls(tmp_path):
    return (tmp_path / "calls.txt").read_text().splitlines()


SBATCH = 'export SLURM_JOB_ID=7; bash "$1"'
PYTHON = 'env | grep -E "^(MEGASCALE|COORDINATOR)" >> "$CALLS"; exit "$(cat code 2>/dev/null || echo 0)"'


def test_slurm_runs_the_command_on_every_task(stand_in, tmp_path, monkeypatch):
    stand_in("sbatch", SBATCH)
    stand_in("srun", 'shift; "$@"')
    stand_in("python", PYTHON)
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setenv("COORDINATOR_ADDRESS", "10.0.0.9:8476")
    options = ["--nodes", "2", "--sbatch=--gpus-per-node=8", "--notice", "60"]
    assert main(["slurm", *options, "--", *TRAIN]) == 0
    script = (tmp_path / "runs" / "rlcls-dqn-pong.sbatch").read_text()
    for line in ("--nodes=2", "--gpus-per-node=8", "--signal=TERM@60", "--requeue"):
        assert f"#SBATCH {line}\n" in script
    assert calls(tmp_path) == [
        "sbatch runs/rlcls-dqn-pong.sbatch",
        "srun --kill-on-bad-exit=1 python -m rlcls.train agent=dqn game=Pong run_dir=a\\ b seed=3",
        "python -m rlcls.train agent=dqn game=Pong run_dir=a\\ b seed=3",
    ]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (75, True), (143, True)])
def test_slurm_queues_a_job_again_after_a_death_or_a_preemption(code, requeued, stand_in, tmp_path):
    stand_in("sbatch", SBATCH)
    stand_in("srun", 'shift; "$@"')
    stand_in("scontrol")
    stand_in("python", PYTHON)
    (tmp_path / "code").write_text(str(code))
    assert main(["slurm", "--", *TRAIN]) == code
    assert ("scontrol requeue 7" in calls(tmp_path)) == requeued


GCLOUD = """
case "$*" in
  *describe*) cat state 2>/dev/null ;;
  *create*) echo ACTIVE > state ;;
  *delete*) rm -f state ;;
  *"--command=cd rlcls "*)
    echo x >> attempts
    if [ "$(wc -l < attempts)" -eq 1 ]; then echo SUSPENDED > state; exit 255; fi ;;
esac
"""


def test_a_tpu_that_is_taken_away_is_asked_for_again_and_given_back_at_the_end(stand_in, tmp_path):
    stand_in("gcloud", GCLOUD)
    options = ["--type", "v5litepod-16", "--zone", "z1", "--runs", "/mnt/runs", "--spot", "--poll", "0"]
    assert main(["tpu", *options, "--", "agent=dqn", "game=Pong"]) == 0
    made = [call for call in calls(tmp_path) if "describe" not in call]
    kinds = [
        next(word for word in ("create", "scp", "pip", "rlcls.train", "delete") if word in call)
        for call in made
    ]
    once = ["create", "scp", "pip", "rlcls.train", "delete"]
    assert kinds == once * 2
    assert "--accelerator-type=v5litepod-16" in made[0] and "--spot" in made[0] and "--zone=z1" in made[0]
    assert "--worker=all" in made[3] and "run_dir=/mnt/runs/rlcls-dqn-pong" in made[3]
    assert "-u\\ MEGASCALE_COORDINATOR_ADDRESS" in made[3]


def test_a_mistake_in_training_on_a_tpu_is_no_reason_to_begin_again(stand_in, tmp_path):
    stand_in("gcloud", GCLOUD.replace("exit 255", "exit 2").replace("SUSPENDED", "ACTIVE"))
    options = ["--type", "v5litepod-16", "--zone", "z1", "--runs", "/mnt/runs", "--poll", "0"]
    assert main(["tpu", *options, "--", *TRAIN]) == 2
    assert sum("rlcls.train" in call for call in calls(tmp_path)) == 1
    assert "delete" in calls(tmp_path)[-1]


def test_skypilot_gets_a_task_whose_processes_find_each_other(stand_in, tmp_path):
    stand_in("sky")
    options = ["--accelerators", "H100:8", "--nodes", "2", "--spot", "--bucket", "gs://me/runs"]
    assert main(["sky", *options, "--", "agent=dqn", "game=Pong"]) == 0
    path = tmp_path / "runs" / "rlcls-dqn-pong.sky.yaml"
    assert calls(tmp_path) == [f"sky jobs launch --yes --name rlcls-dqn-pong {path.relative_to(tmp_path)}"]
    task = yaml.safe_load(path.read_text())
    assert task["num_nodes"] == 2 and task["resources"]["use_spot"] is True
    assert task["file_mounts"] == {"/runs": {"source": "gs://me/runs", "mode": "MOUNT"}}
    # Its command, run as SkyPilot runs it on the second node.
    stand_in("python", PYTHON)
    environment = os.environ | {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "MEGASCALE_NUM_SLICES": "4",
    }
    subprocess.run(["bash", "-c", task["run"]], env=environment, check=True)
    assert calls(tmp_path)[1:] == [
        "python -m rlcls.train agent=dqn game=Pong run_dir=/runs/rlcls-dqn-pong distributed.coordinator=10.0.0.1:29417 "
        "distributed.num_processes=2 distributed.process_id=1 distributed.timeout=600"
    ]


@pytest.mark.parametrize("where", ["slurm", "tpu"])
def test_scripts_pass_shellcheck(where, capsys, tmp_path, monkeypatch):
    checker = shutil.which("shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    monkeypatch.chdir(tmp_path)
    options = ["--type", "v5litepod-16", "--zone", "z1", "--runs", "/mnt/runs"] if where == "tpu" else []
    assert main([where, *options, "--dry-run", "--", *TRAIN]) == 0
    script = capsys.readouterr().out.partition("\n")[2].rpartition("\n$ ")[0]
    done = subprocess.run([checker, "-"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_each_run_of_a_sweep_is_a_job(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["slurm", "--dry-run", "--", "--multirun", "agent=dqn", "game=Pong", "seed=0,1"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("$ sbatch runs/rlcls-dqn-pong-0.sbatch\n$ sbatch runs/rlcls-dqn-pong-1.sbatch\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: unknown place 'nowhere': expected one of local, slurm, tpu, sky\n"),
        (
            ["local"],
            "error: say what to train: -- and the arguments of rlcls.train, such as -- agent=dqn game=Pong\n",
        ),
        (["local", "--", "loss=hlgaus"], "error: unknown loss 'hlgaus'; did you mean 'hlgauss'?"),
        (["local", "--", "--config"], "error: --config is no flag of a run that is launched\n"),
        (["slurm", "--", *TRAIN], "error: sbatch is not on PATH; --dry-run prints the scripts\n"),
        (
            ["sky", "--accelerators", "H100:8", "--bucket", "gs://b", "--", *TRAIN],
            "error: sky is not on PATH",
        ),
        (["local", "--processes", "0", "--", *TRAIN], "--processes must be at least 1"),
        (["tpu", "--", *TRAIN], "the following arguments are required: --type, --zone, --runs"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_started(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_commands_of_several_processes_are_shown(capsys):
    assert main(["local", "--processes", "2", "--dry-run", "--", *TRAIN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("distributed.process_id=")[2] for line in lines] == ["0", "1"]
