"""`python -m rlcls.train` shows its progress and says from where it resumes."""

import re

from rlcls import phases
from rlcls.train import main

PROBE = [
    "env=probe",
    "game=probe/policy",
    "backbone=mlp",
    "env.num_envs=4",
    "replay.capacity=400",
    "replay.min_size=100",
    "training.batch_size=16",
    "diagnostics.every=0",
    "eval.every=200",
    "eval.episodes=40",
    "checkpoint.every=200",
    "logging.every=100",
    "logging.tensorboard=false",
]


def test_a_run_shows_its_progress_and_a_resumed_one_the_last_values_shown(tmp_path, monkeypatch, capsys):
    for name in ("PLAIN_PERIOD", "PATIENCE"):  # nearly every step is shown
        monkeypatch.setattr(phases, name, 0.001)
    arguments = [*PROBE, f"run_dir={tmp_path / 'run'}"]
    assert main([*arguments, "steps=400"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("compiling (") for line in lines)
    (end,) = (line for line in lines if line.startswith("expected end"))
    assert re.search(r" \(\d+\.\d\d ms an agent step, and 10% for evaluations and checkpoints\)$", end)
    assert any(re.search(r"  evaluating: \d+ of 40 done \(0:0\d\)$", line) for line in lines)
    *_, last, _ = lines
    before = last[last.index("training return") :]
    assert "-" not in re.sub(r"-[\d.]", "", before)  # no value is missing

    assert main([*arguments, "steps=600"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("resuming ") for line in lines)
    first = next(line for line in lines if "agent steps/s" in line)
    assert first[first.index("training return") :] == before
