"""What a run folder refuses, and what is left where a run could not be made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlcls.training import checkpoint

ROOT = Path(__file__).parents[2]
SHORT = [
    "env=probe",
    "game=probe/two_step",
    "backbone=mlp",
    "steps=600",
    "env.num_envs=4",
    "replay.capacity=1000",
    "replay.min_size=100",
    "training.batch_size=4",
    "eval.episodes=1",
    "checkpoint.every=200",
    "logging.every=100",
]


def train(*overrides, cwd):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-m", "rlcls.train", *SHORT, *overrides],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        text=True,
        capture_output=True,
        timeout=300,
    )


def assert_refused(done, line):
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    assert line in done.stderr


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    assert_refused(train("run_dir=photos", cwd=tmp_path), "photos is there and is not a run folder")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    assert_refused(train("run_dir=taken", cwd=tmp_path), "taken is there and is not a run folder")
    assert_refused(train("run_dir=taken/run", cwd=tmp_path), "cannot write to the run folder taken/run")


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_a_device_that_is_not_there_is_named_with_what_is(device, tmp_path):
    done = train(f"device={device}", cwd=tmp_path)
    assert_refused(done, f"device={device} was asked for and JAX finds none (it finds cpu)")
    assert not list(tmp_path.iterdir())


def test_a_replay_larger_than_the_memory_is_refused_with_one_that_fits(tmp_path):
    overrides = ["env=atari", "game=Pong", "backbone=nature", "replay.capacity=2000000000"]
    assert_refused(train(*overrides, cwd=tmp_path), "would fit")
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_cannot_see_the_observations_is_one_line(tmp_path):
    assert_refused(train("backbone=nature", cwd=tmp_path), "Nature looks at observations of shape")
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    assert train("run_dir=run", "loss=mse", "agent.learning_rate=0.001", cwd=tmp_path).returncode == 0
    good = checkpoint.load(tmp_path / "run")[0]
    # The same run goes on, at a learning rate that no float survives.
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.001", "learning_rate: 1.0e+30"))
    done = train("run_dir=run", "loss=mse", "agent.learning_rate=1e30", "steps=900", cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "update" in last and "is the last good checkpoint" in last
    kept = checkpoint.load(tmp_path / "run")[0]
    assert kept is not None and kept.agent_steps >= good.agent_steps


def test_a_resume_under_other_versions_says_so(tmp_path):
    assert train("run_dir=run", cwd=tmp_path).returncode == 0
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cores": 77, "jax": "0.1.0"}))
    done = train("run_dir=run", "steps=700", cwd=tmp_path)
    assert done.returncode == 0
    assert "note: cores was 77 when this run began" in done.stderr and "note: jax was 0.1.0" in done.stderr


def test_a_sweep_makes_its_runs_one_after_another(tmp_path):
    done = train("--multirun", "seed=0,1", "steps=200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 2
