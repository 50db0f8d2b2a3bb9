"""A machine whose gcloud, sbatch and so on are stand-ins that record their arguments and do the work here."""

import json
import os
import sys
import types
from pathlib import Path

import pytest

from rlcls.launch import local

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder to work in, with the stand-ins on PATH.

    `plan(*attempts)` sets what training does in each attempt, and `touch(name)` makes a stand-in cause an accident.
    `calls(name)` returns the arguments of each call of a stand-in. `trained(index)` has an entry for each attempt of a
    process. `folder` is the folder of the stand-ins.
    """
    folder = tmp_path / "stand-in"
    (folder / "bin").mkdir(parents=True)
    for name in ("gcloud", "uv", "sbatch", "srun", "scontrol", "sky"):
        script(folder / "bin" / name, HERE / "_stand_in.py", name)
    script(folder / "bin" / "train", HERE / "_train.py")
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOME", str(folder))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TPU_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(local, "_PROGRAM", [str(folder / "bin" / "train"), "-m", "rlcls.train"])
    monkeypatch.setattr(local, "_PAUSE", 0.01)
    work = tmp_path / "work"
    work.mkdir()
    (work / "pyproject.toml").write_text('name = "rlcls"\n')
    monkeypatch.chdir(work)

    def lines(path):
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return types.SimpleNamespace(
        folder=folder,
        plan=lambda *attempts: (folder / "plan.json").write_text(json.dumps(attempts)),
        calls=lambda name: [call[1:] for call in lines(folder / "calls.jsonl") if call[0] == name],
        trained=lambda index: lines(folder / f"train-{index}.jsonl"),
        touch=lambda name: (folder / name).touch(),
    )


def script(path, program, *arguments):
    words = " ".join([sys.executable, str(program), *arguments])
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)
