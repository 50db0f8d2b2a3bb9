"""A mistake in a launch is one line, and nothing is started."""

import os
import sys

import pytest

from rlcls.launch.__main__ import main

TRAIN = ["agent=dqn", "game=Pong"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: unknown place 'nowhere': expected one of local, slurm, tpu, sky\n"),
        (
            ["local"],
            "error: say what to train: -- and the arguments of rlcls.train, such as -- agent=dqn game=Pong\n",
        ),
        (["local", "--", "agnt=dqn"], "error: unknown option 'agnt'"),
        (["local", "--", "loss=hlgaus"], "error: unknown loss 'hlgaus'; did you mean 'hlgauss'?"),
        (["local", "--", "--config"], "error: a run that is launched does not take --config\n"),
        (["slurm", "--", *TRAIN], "error: sbatch is not on PATH; --dry-run prints its arguments\n"),
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
