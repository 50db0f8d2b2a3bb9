"""A run that is killed anywhere and resumed ends with the same bits as one that is not."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from rlcls import files
from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.evaluation import EpisodeEvaluator
from rlcls.runs import Checkpoints, checkpoint, metrics
from rlcls.train import main
from rlcls.training import Online

SMALL = [
    "game=RoadRunner",
    "seed=3",
    "steps=800",
    "env.num_envs=4",
    "replay.capacity=600",  # the ring wraps
    "replay.min_size=150",
    "training.batch_size=4",
    "training.update_period=8",
    "training.reseed_every=25",
    "eval.every=400",
    "eval.episodes=1",
    "checkpoint.every=125",
    "logging.every=50",
    "logging.tensorboard=false",
]


def train(run_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "rlcls.train", *SMALL, f"run_dir={run_dir}", *overrides]


def run_in_a_process(run_dir: Path, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(train(run_dir, *overrides), capture_output=True, text=True, timeout=300)


def run(run_dir: Path, *overrides: str) -> subprocess.CompletedProcess:
    """Runs the command in this process, which has already imported everything."""
    out, err = io.StringIO(), io.StringIO()
    arguments = train(run_dir, *overrides)[3:]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = run(run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run that is far from its end. Tests continue a copy."""
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    assert run(run_dir, "steps=200").returncode == 0
    return run_dir


@pytest.fixture(scope="module")
def shorter(tmp_path_factory) -> Path:
    """A finished run with half of the steps of `whole`, and an evaluation there. Tests continue a copy."""
    run_dir = tmp_path_factory.mktemp("shorter") / "run"
    assert run(run_dir, "steps=400").returncode == 0
    return run_dir


def assert_same_end(a: Path, b: Path) -> None:
    mine, theirs = checkpoint.load(a)[0], checkpoint.load(b)[0]
    assert mine is not None and theirs is not None
    assert mine.steps == theirs.steps
    assert metrics.same(a, b)
    assert mine.counters["loop"] == theirs.counters["loop"]
    assert mine.arrays.keys() == theirs.arrays.keys()
    for name in mine.arrays:
        np.testing.assert_array_equal(mine.arrays[name], theirs.arrays[name], err_msg=name)
    for x, y in zip(leaves(mine), leaves(theirs), strict=True):
        np.testing.assert_array_equal(x, y)


def leaves(saved: checkpoint.Checkpoint) -> list[np.ndarray]:
    import jax
    import orbax.checkpoint as ocp

    path = (saved.folder / "tree").resolve()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        # The arrays are restored on the host, because the run may have had more devices than this process.
        on_the_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_the_host))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored)]


def test_a_run_stopped_by_sigterm_and_killed_by_sigkill_resumes_to_the_same_bits(whole, tmp_path):
    """tests/training/test_online.py tests every lag, in one process."""
    moments = random.Random(1)
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            train(tmp_path / "run"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        wait_for_lines(tmp_path / "run", process, more=moments.randint(1, 4))
        time.sleep(moments.random() * 0.3)
        process.send_signal(number)
        output = process.communicate(timeout=120)[0]
        if number == signal.SIGTERM and process.returncode:
            assert process.returncode == 128 + signal.SIGTERM, output
            assert "stopped by SIGTERM" in output
    done = run(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert_same_end(whole, tmp_path / "run")


@pytest.mark.slow
def test_soft_moe_with_hl_gauss_goes_on_to_the_same_bits(tmp_path):
    """The diagnostics, including those of the routing, are also equal."""
    overrides = ["env=probe", "game=probe/two_step", "+env.pixels=true", "env.num_envs=2", "loss=hlgauss"]
    overrides += ["backbone=soft_moe", "backbone.num_experts=2", "backbone.hidden=64"]
    overrides += ["replay.capacity=200", "replay.min_size=20"]
    overrides += ["training.batch_size=2", "training.update_period=2"]
    overrides += ["diagnostics.every=3", "diagnostics.batch_size=8"]
    config = compose(overrides)

    def make() -> Online:
        env = build.environment(config)
        return build.loop(config, build.agent(config, env.spec), env)

    def advance(loop: Online, steps: int) -> list:
        return [line for _ in range(steps) for line in loop.advance()]

    first, second = make(), make()
    advance(first, 16)
    Checkpoints(tmp_path, 1).save(16, first.save())
    fresh = second.save()
    second.restore(checkpoint.load(tmp_path)[0].saved(fresh.tree, fresh.rows))
    lines = advance(first, 12)
    assert lines == advance(second, 12)
    looks = [values for kind, values in lines if kind == "diagnostics"]
    assert len(looks) > 1 and all(0 < values["dispatch_similarity_mean"] <= 1 for values in looks)
    chex.assert_trees_all_equal(*(jax.tree.map(np.array, loop.save().tree) for loop in (first, second)))
    first.close()
    second.close()


def test_a_signal_during_an_evaluation_ends_it_and_the_resume_repeats_it(whole, tmp_path, monkeypatch):
    play, cut = EpisodeEvaluator.play, []

    def interrupted(self, acting, number, tick, record=None):
        def tick_and_signal(done, total):
            if len(cut) < 2:
                cut.append(number)
                signal.raise_signal(signal.SIGTERM)
            tick(done, total)

        return play(self, acting, number, tick_and_signal, record)

    monkeypatch.setattr(EpisodeEvaluator, "play", interrupted)
    # The second signal comes while the resume repeats the evaluation.
    for _ in range(2):
        done = run(tmp_path / "run")
        assert done.returncode == 128 + signal.SIGTERM, done.stderr
        saved = checkpoint.load(tmp_path / "run")[0]
        assert saved.steps == 400 and saved.counters["unfinished"] == ["eval"]
    done = run(tmp_path / "run")
    assert done.returncode == 0 and cut == [100, 100], done.stderr
    assert_same_end(whole, tmp_path / "run")
    assert "is finished" in run(tmp_path / "run").stdout


@pytest.mark.slow
def test_a_run_on_two_devices_that_is_killed_resumes_to_the_same_bits(tmp_path, monkeypatch):
    flags = os.environ.get("XLA_FLAGS", "")
    monkeypatch.setenv("XLA_FLAGS", f"{flags} --xla_force_host_platform_device_count=4")
    overrides = ["env=probe", "game=probe/policy", "backbone=mlp", "diagnostics.every=50", "mesh.data=2"]
    done = run_in_a_process(tmp_path / "whole", *overrides)
    assert done.returncode == 0 and "2 of 4 devices, mesh of data=2, model=1" in done.stdout, done.stderr
    process = subprocess.Popen(train(tmp_path / "run", *overrides), stdout=subprocess.DEVNULL)
    while process.poll() is None and checkpoint.last_written(tmp_path / "run") is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = run_in_a_process(tmp_path / "run", *overrides)
    assert done.returncode == 0 and "resuming" in done.stdout, done.stderr
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    # The result does not depend on the mesh: another mesh can continue the run, and one device can evaluate it.
    done = run_in_a_process(tmp_path / "run", *overrides[:-1], "mesh.data=4", "steps=1000")
    assert done.returncode == 0, done.stderr
    assert "restored from a mesh of data=2, model=1 on one of data=4, model=1" in done.stderr
    monkeypatch.setenv("XLA_FLAGS", flags)
    evaluate = [sys.executable, "-m", "rlcls.evaluate", str(tmp_path / "run"), "eval.episodes=2"]
    done = subprocess.run(evaluate, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def wait_for_lines(run_dir: Path, process: subprocess.Popen, more: int) -> None:
    """Waits until the run has written `more` lines."""
    path = run_dir / "metrics.jsonl"
    had, deadline = None, time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        had = lines if had is None else min(had, lines)
        if lines >= had + more:
            return
        time.sleep(0.02)


def test_the_same_command_on_a_finished_run_says_so(whole):
    done = run(whole)
    assert done.returncode == 0 and "is finished: it has 800 of 800 agent steps" in done.stdout


def test_a_checkpoint_changes_no_bit(whole, tmp_path):
    assert run(tmp_path / "run", "checkpoint.every=45").returncode == 0
    assert_same_end(whole, tmp_path / "run")


def test_a_larger_number_of_steps_extends_a_finished_run(whole, shorter, tmp_path):
    run_dir = shutil.copytree(shorter, tmp_path / "run")
    assert run(run_dir).returncode == 0
    assert_same_end(whole, run_dir)


def test_another_configuration_is_refused_with_the_difference(whole):
    done = run(whole, "agent.learning_rate=0.002")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "agent.learning_rate is 0.001 there and 0.002 here" in done.stderr


def test_a_second_process_is_refused(tmp_path):
    first = subprocess.Popen(train(tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_lines(tmp_path / "run", first, more=1)
        second = run(tmp_path / "run")
        assert second.returncode == 2 and "another process is training" in second.stderr
    finally:
        first.kill()
        first.wait()


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(whole, shorter, tmp_path):
    run_dir = shutil.copytree(shorter, tmp_path / "run")
    before, newest = sorted((run_dir / "checkpoints").iterdir())
    named, older = (
        json.loads((folder / "manifest.json").read_text())["parts"] for folder in (newest, before)
    )
    fresh = [name for name in named if name.startswith("replay/") and name not in older]
    data = (run_dir / fresh[0]).read_bytes()
    (run_dir / fresh[0]).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = run(run_dir)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {newest} is damaged" in done.stderr
    assert_same_end(whole, run_dir)


def test_an_emulator_that_plays_differently_is_named(begun, tmp_path):
    run_dir = shutil.copytree(begun, tmp_path / "run")
    newest = checkpoint.load(run_dir)[0]
    counters = json.loads((newest.folder / "counters.json").read_text())
    counters["loop"]["observations"] = ["0" * 64 for _ in counters["loop"]["observations"]]
    path = newest.folder / "counters.json"
    path.write_text(json.dumps(counters))
    manifest = json.loads((newest.folder / "manifest.json").read_text())
    name = str(path.relative_to(run_dir))
    manifest["parts"][name] = files.Seal.of(path)
    (newest.folder / "manifest.json").write_text(json.dumps(manifest))
    done = run(run_dir)
    assert done.returncode == 2
    assert (
        "the environments play differently now" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    )


def test_no_room_for_a_checkpoint_is_one_line_and_keeps_the_one_before(begun, tmp_path):
    """A limit on file sizes simulates a full disk."""
    run_dir = shutil.copytree(begun, tmp_path / "run")
    before = checkpoint.load(run_dir)[0].steps
    code = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    code += "sys.argv[0] = 'rlcls.train'; runpy.run_module('rlcls.train', run_name='__main__')"
    command = [sys.executable, "-c", code, *train(run_dir)[3:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 2, done.stderr
    assert "error: cannot write" in done.stderr.splitlines()[-1]
    assert checkpoint.load(run_dir)[0].steps == before
