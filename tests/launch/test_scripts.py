"""shellcheck accepts the generated shell scripts, whatever the arguments."""

import os
import shutil
import subprocess
import sys

import pytest

from rlcls.launch.__main__ import main
from rlcls.launch.jobs import Job
from rlcls.launch.sky import task

SHELLCHECK = shutil.which(
    "shellcheck", path=f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
)
TRAIN = ["game=Pong", "mesh.rules=[[layers/1/kernel,[null,model]]]", "run_dir=/mnt/it's mine"]
TPU = ["--type", "v5litepod-16", "--zone", "z", "--project", "p", "--runs", "/mnt/runs", "--poll", "0"]


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize(
    "options",
    [
        ["slurm"],
        ["slurm", "--nodes", "2", "--sbatch=--gpus-per-node=8", "--setup", "module load cuda"],
        ["tpu", *TPU],
        ["tpu", *TPU, "--spot", "--keep", "--mount", "sudo mount -a"],
    ],
    ids=lambda options: " ".join(options[:3]),
)
def test_shellcheck_accepts_the_script(machine, options):
    machine.plan(*["done"] * 4)
    if options[0] == "slurm":  # its stand-in runs the script, which would otherwise train
        options = [*options, "--python", str(machine.folder / "bin" / "train")]
    main([*options, "--restarts", "0", "--", *TRAIN])
    (script,) = (path for path in os.listdir("launches") if path.endswith((".sh", ".sbatch")))
    done = subprocess.run([SHELLCHECK, f"launches/{script}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("step", ["setup", "run"])
def test_shellcheck_accepts_the_commands_of_a_task(tmp_path, step):
    made = task(Job(TRAIN, "name"), "H100:8", 2, True, "gs://me/runs")
    (tmp_path / "script").write_text(f"#!/bin/bash\n{made[step]}")
    done = subprocess.run([SHELLCHECK, tmp_path / "script"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_arguments_pass_through_every_shell_unchanged(machine):
    arguments = [*TRAIN[:-1], "run_dir=$HOME/it's `mine`"]
    machine.plan("done", "done")
    assert main(["tpu", *TPU, "--", *arguments]) == 0
    train = str(machine.folder / "bin" / "train")
    assert main(["slurm", "--python", train, "--", *arguments]) == 0
    assert [each["arguments"] for each in machine.trained(0)] == [arguments] * 2
