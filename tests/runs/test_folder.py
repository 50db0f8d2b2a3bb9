"""Errors of run folders, and the files that remain if a run cannot start."""

import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from omegaconf import OmegaConf

from rlcls._errors import UserError
from rlcls.cli import build, run_config
from rlcls.cli.compose import compose
from rlcls.envs.atari import PROTOCOLS
from rlcls.runs import checkpoint, folder
from rlcls.train import main

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
    """Runs the command in this process, which has already imported everything."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*SHORT, *overrides])
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(overrides, code, out.getvalue(), err.getvalue())


def train_in_a_process(*overrides, cwd, first=ROOT):
    path = os.pathsep.join([str(first), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
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
    assert_refused(train("run_dir=photos", cwd=tmp_path), "photos exists and is not a run folder")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    assert_refused(train("run_dir=taken", cwd=tmp_path), "taken exists and is not a run folder")
    assert_refused(train("run_dir=taken/run", cwd=tmp_path), "cannot write to the run folder taken/run")


def test_a_folder_with_a_config_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "site").mkdir()
    for content, why in {
        "title: home": "is not a run folder: its config.yaml is not that of a run",
        "- 1": "is not a run folder: its config.yaml is not that of a run",
        "": "site/config.yaml is empty; the command that began the run prints",
        "a: [1": "cannot read .*site/config.yaml: while parsing a flow sequence",
    }.items():
        (tmp_path / "site" / "config.yaml").write_text(content)
        with pytest.raises(UserError, match=why):
            folder.read_config(tmp_path / "site")
    assert_refused(train("run_dir=site", cwd=tmp_path), "cannot read site/config.yaml")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_a_device_that_is_not_there_is_named_with_what_is(device, tmp_path):
    done = train_in_a_process(f"device={device}", cwd=tmp_path)
    assert_refused(done, f"device={device} was asked for and JAX finds none (it finds cpu)")
    assert not list(tmp_path.iterdir())


def test_a_replay_larger_than_the_memory_is_refused_with_one_that_fits(tmp_path):
    overrides = ["env=atari", "game=Pong", "backbone=nature", "replay.capacity=2000000000"]
    assert_refused(train(*overrides, cwd=tmp_path), "would fit")
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_cannot_see_the_observations_is_one_line(tmp_path):
    assert_refused(train("backbone=nature", cwd=tmp_path), "Nature takes observations of shape")
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    assert train("run_dir=run", "loss=mse", "agent.learning_rate=0.001", cwd=tmp_path).returncode == 0
    good = checkpoint.load(tmp_path / "run")[0]
    # The same run continues with a learning rate that makes it diverge.
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.001", "learning_rate: 1.0e+30"))
    done = train("run_dir=run", "loss=mse", "agent.learning_rate=1e30", "steps=900", cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "update" in last and "is the last good checkpoint" in last
    kept = checkpoint.load(tmp_path / "run")[0]
    assert kept is not None and kept.steps >= good.steps


def test_a_resume_under_other_versions_says_so(tmp_path):
    assert train("run_dir=run", cwd=tmp_path).returncode == 0
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cores": 77, "jax": "0.1.0"}))
    done = train("run_dir=run", "steps=700", cwd=tmp_path)
    assert done.returncode == 0
    assert "note: cores was 77 when this run began" in done.stderr and "note: jax was 0.1.0" in done.stderr


def test_a_sweep_given_again_continues_its_runs_and_adds_what_is_new(tmp_path):
    done = train("--multirun", "seed=0,1", "steps=200", cwd=tmp_path)
    assert done.returncode == 0 and "[2/2] python -m rlcls.train" in done.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert train("--multirun", "seed=1,2", "steps=400", cwd=tmp_path).returncode == 0
    lasts = {}
    for run in (tmp_path / "runs").iterdir():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lasts[OmegaConf.load(run / "config.yaml").seed] = lines[-1]["agent_steps"]
        steps = [line["agent_steps"] for line in lines if line["kind"] == "train"]
        assert steps == sorted(set(steps))
    assert lasts == {0: 200, 1: 400, 2: 400}


@pytest.mark.slow
def test_a_launcher_of_hydra_makes_the_runs_and_leaves_nothing_else(tmp_path):
    options = ["--multirun", "hydra/launcher=basic", "seed=0,1", "steps=200"]
    assert train(*options, cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert len(list((tmp_path / "runs").glob("*/learning_curve.png"))) == 2


def test_a_launcher_that_is_not_there_or_not_asked_to_sweep_is_one_line(tmp_path):
    done = train("--multirun", "hydra/launcher=basi", "seed=0,1", cwd=tmp_path)
    assert_refused(done, "unknown launcher 'basi'; did you mean 'basic'?")
    assert_refused(
        train("hydra/launcher=basic", cwd=tmp_path), "hydra/launcher=basic makes the runs of a sweep"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_and_the_run_under_way_saves(number, tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    sweep = subprocess.Popen(
        [sys.executable, "-m", "rlcls.train", *SHORT, "--multirun", "seed=0,1", "steps=1000000"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(sweep.pid, number)  # like a terminal
    else:
        sweep.send_signal(number)
    output = sweep.communicate(timeout=120)[0]
    assert sweep.returncode == 128 + number, output
    assert f"stopped by {number.name} at agent step" in output and "[2/2]" not in output
    (made,) = (tmp_path / "runs").iterdir()
    assert checkpoint.load(made)[0] is not None
    assert (made / "learning_curve.png").stat().st_size > 10_000


def test_ctrl_c_ends_a_command_that_only_starts(tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    starting = subprocess.Popen(
        [sys.executable, "-m", "rlcls.train", *SHORT, "steps=1000000"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell makes its background jobs, and their children, ignore Ctrl-C.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        time.sleep(1)  # time for imports
        starting.send_signal(signal.SIGINT)
        assert starting.wait(timeout=60) == -signal.SIGINT
        assert not list(tmp_path.iterdir())
    finally:
        starting.kill()


def make_loop(*overrides):
    config = compose([*SHORT, *overrides])
    env = build.environment(config)
    return build.loop(config, build.agent(config, env.spec), env)


IMPOSSIBLE = {
    "replay.min_size=19": r"replay.min_size \(19\) must be at least 20: 3-step returns of 4 environments at a lag of 2",
    "replay.capacity=23": r"the replay's capacity \(23\) must hold at least 6 steps of each of 4 environments",
}


@pytest.mark.untyped
@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_a_replay_that_could_be_without_a_transition_is_refused(option):
    with pytest.raises(UserError, match=IMPOSSIBLE[option]):
        make_loop("replay.min_size=20", "training.lag=2", option)


@pytest.mark.parametrize("lag", [0, 3])
def test_the_smallest_run_that_is_not_refused_always_has_a_transition(lag):
    """In episodes of one step, every second row cannot start a transition."""
    least = [
        "env.num_envs=1",
        f"training.lag={lag}",
        f"replay.min_size={3 + lag}",
        f"replay.capacity={3 + max(0, lag - 1) + 2}",
        "training.reseed_every=1",
        "training.update_period=1",
        "training.batch_size=1",
    ]
    loop = make_loop("game=probe/constant", "loss=mse", *least)
    for _ in range(40):
        loop.advance()
    assert loop.counts["updates"] > 30
    loop.close()


def test_a_missing_library_is_one_line_that_says_what_to_install(tmp_path):
    (tmp_path / "hydra.py").write_text("raise ModuleNotFoundError(\"No module named 'hydra'\", name='hydra')")
    done = train_in_a_process(cwd=tmp_path, first=tmp_path)
    assert_refused(done, 'hydra is not installed; the commands need pip install "rlcls[atari]"')


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_whole_protocol_is_stored_and_a_resume_under_another_meaning_says_so(protocol, tmp_path):
    config = run_config.plain_dict(compose([f"env.protocol={protocol}"]))
    means = dataclasses.asdict(PROTOCOLS[protocol])

    def opened(protocol):
        return folder.RunFolder(tmp_path, config, environment="Pong", protocol=protocol)

    with opened(means) as run:
        run.record()
        facts = folder.read_facts(run.path)
        assert facts["protocol"] == means and facts["environment"] == "Pong"
    with opened(means) as run:
        assert run.resumed and not run.remarks
    with opened(means | {"noop_max": 7}) as run:
        assert len(run.remarks) == 1 and "protocol was" in run.remarks[0]


def test_a_resume_under_settings_of_jax_that_change_bits_says_so(tmp_path, monkeypatch):
    config = run_config.plain_dict(compose(SHORT))

    def opened():
        run = folder.RunFolder(tmp_path, config, environment="probe/two_step", protocol={})
        run.record()
        return run

    monkeypatch.delenv("XLA_FLAGS", raising=False)
    opened().close()
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    now = {
        "jax_default_prng_impl": "rbg",
        "jax_enable_x64": True,
        "jax_default_matmul_precision": "float32",
    }
    before = {name: jax.config.values[name] for name in now}
    try:
        for name, value in now.items():
            jax.config.update(name, value)
        with opened() as run:
            remarks = run.remarks
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    rest = ": results may differ in their last bits"
    assert [line.removesuffix(rest) for line in remarks] == [
        "jax_default_prng_impl was threefry2x32 when this run began and is rbg",
        "jax_enable_x64 was False when this run began and is True",
        "jax_default_matmul_precision was None when this run began and is float32",
        "XLA_FLAGS was None when this run began and is --xla_gpu_deterministic_ops=true",
    ]


def test_a_file_system_without_locks_is_a_note(tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(folder.fcntl, "flock", flock)
    config = run_config.plain_dict(compose(SHORT))
    folder.RunFolder(tmp_path / "run", config, environment="probe/two_step", protocol={}).close()
    assert capsys.readouterr().err == (
        f"note: {tmp_path / 'run'} cannot be locked (Operation not supported): make sure that no other process trains "
        "in it\n"
    )


def test_training_and_a_resume_transfer_nothing_implicitly(tmp_path):
    before = jax.config.values["jax_transfer_guard"]
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        for steps in (600, 800):
            done = train(f"steps={steps}", "diagnostics.every=50", "run_dir=run", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    finally:
        jax.config.update("jax_transfer_guard", before)


def test_training_makes_no_nan(tmp_path):
    before = jax.config.values["jax_debug_nans"]
    jax.config.update("jax_debug_nans", True)
    try:
        done = train("diagnostics.every=20", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    finally:
        jax.config.update("jax_debug_nans", before)


def test_a_folder_that_is_no_run_is_answered_with_the_runs_near_it(tmp_path):
    (tmp_path / "dqn-mse-Pong-s0-12345678").mkdir()
    (tmp_path / "dqn-mse-Pong-s0-12345678" / "config.yaml").touch()
    for name, ending in {
        "dqn-mse-Pong-s0-12345679": "; did you mean 'dqn-mse-Pong-s0-12345678'? (dqn-mse-Pong-s0-12345678)",
        ".": f"; it contains run folders, such as {tmp_path}/dqn-mse-Pong-s0-12345678",
        "zzz": "",
    }.items():
        with pytest.raises(UserError) as error:
            folder.read_config(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name} is not a run folder: it has no config.yaml{ending}"
