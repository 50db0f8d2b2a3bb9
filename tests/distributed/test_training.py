"""Training by two processes: it ends in the same bits, whichever of them is killed meanwhile."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlcls import files
from rlcls.runs import checkpoint

OPTIONS = [
    *("agent=dqn", "loss=hlgauss", "env=gymnasium", "env.id=CartPole-v1", "recipe=vector", "env.num_envs=4"),
    *("eval.every=600", "eval.episodes=2", "checkpoint.every=300", "logging.every=300", "device=cpu"),
    *("replay.min_size=200", "replay.prioritized=true", "logging.tensorboard=false", "diagnostics.every=20"),
]
SPEED = ("seconds", "steps_per_second", "frames_per_second")


@pytest.fixture
def launch(tmp_path):
    """Starts a training of two processes in a folder; what is left of it at the end of the test is killed."""
    begun = []

    def launch(name, *options):
        command = [sys.executable, "-m", "rlcls.launch", "local", "--processes", "2", "--restarts", "30"]
        command += [
            "--logs",
            str(tmp_path / f"logs-{name}"),
            "--",
            *OPTIONS,
            *options,
            f"run_dir={tmp_path / name}",
        ]
        with open(tmp_path / f"{name}.txt", "w") as output:
            begun.append(subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True))
        return begun[-1]

    yield launch
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_checkpoint(run_dir, steps=0, seconds=120):
    end = time.monotonic() + seconds
    while (checkpoint.last_written(run_dir) or -1) < steps:
        assert time.monotonic() < end, f"no checkpoint of {steps} agent steps"
        time.sleep(0.1)


def processes_of(run_dir):
    """The process numbers of a training, by their place."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if f"run_dir={run_dir}" in arguments and "rlcls.train" in arguments:
            for argument in arguments:
                if argument.startswith("distributed.process_id="):
                    found[int(argument.partition("=")[2])] = int(folder.name)
    return found


def contents(run_dir):
    """The newest checkpoint, all its arrays, and the metrics without times."""
    newest, damaged = checkpoint.load(run_dir)
    assert not damaged
    path = (newest.folder / "tree").resolve()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        like = checkpointer.metadata(path).item_metadata.tree
        on_the_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        tree = checkpointer.restore(path, args=ocp.args.PyTreeRestore(like, restore_args=on_the_host))
    arrays = {f"tree{number}": leaf for number, leaf in enumerate(jax.tree.leaves(tree))}
    metrics = []
    for host, folder in enumerate((run_dir, run_dir / "hosts" / "1")):
        mine = checkpoint.open_whole(run_dir, newest.folder, host=host)
        arrays |= {f"{host}/{name}": values for name, values in mine.arrays.items()}
        for segment in mine.segments:
            rows = files.unpack(segment.path)
            arrays |= {f"{host}/{segment.path.name}/{name}": values for name, values in rows.items()}
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        metrics.append([{name: value for name, value in line.items() if name not in SPEED} for line in lines])
    return newest.steps, arrays, metrics


def assert_equal(first, second):
    assert first[0] == second[0] and first[2] == second[2]
    assert first[1].keys() == second[1].keys()
    for name, values in first[1].items():
        np.testing.assert_array_equal(values, second[1][name], err_msg=name)


def test_a_training_whose_process_was_killed_ends_in_the_same_bits(launch, tmp_path):
    assert launch("whole", "steps=1200").wait(timeout=240) == 0, (tmp_path / "whole.txt").read_text()
    training = launch("killed", "steps=1200")
    wait_for_checkpoint(tmp_path / "killed", 300)
    os.kill(processes_of(tmp_path / "killed")[1], signal.SIGKILL)
    assert training.wait(timeout=240) == 0, (tmp_path / "killed.txt").read_text()
    text = (tmp_path / "killed.txt").read_text()
    assert (
        "process 1 of 2 on " in text and "died (its connection closed)" in text and "attempt 2 in 1 s" in text
    )
    assert_equal(contents(tmp_path / "whole"), contents(tmp_path / "killed"))


def test_a_signal_to_any_process_saves_all_and_the_same_command_goes_on(launch, tmp_path):
    training = launch("stopped", "steps=1000000")
    wait_for_checkpoint(tmp_path / "stopped", 300)
    begun = time.monotonic()
    os.kill(processes_of(tmp_path / "stopped")[1], signal.SIGTERM)
    assert training.wait(timeout=60) == 128 + signal.SIGTERM, (tmp_path / "stopped.txt").read_text()
    assert time.monotonic() - begun < 20
    newest, _ = checkpoint.load(tmp_path / "stopped")
    assert newest.hosts == 2
    assert launch("stopped", f"steps={newest.steps + 40}").wait(timeout=120) == 0
    assert "resuming" in (tmp_path / "stopped.txt").read_text()
    # One process alone cannot go on with it, and says so.
    command = [
        sys.executable,
        "-m",
        "rlcls.train",
        *OPTIONS,
        "steps=1000000",
        f"run_dir={tmp_path / 'stopped'}",
    ]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert alone.returncode == 2 and "2 processes wrote checkpoint" in alone.stderr


@pytest.mark.slow
@pytest.mark.skipif("RLCLS_SOAK" not in os.environ, reason="takes a quarter of an hour; RLCLS_SOAK=1 runs it")
def test_a_training_whose_processes_are_killed_twenty_times_ends_in_the_same_bits(launch, tmp_path):
    generator = random.Random(0)
    assert launch("whole", "steps=6000").wait(timeout=600) == 0
    training = launch("killed", "steps=6000")
    kills = 0
    while kills < 20 and training.poll() is None:
        alive = processes_of(tmp_path / "killed")
        if len(alive) == 2:
            time.sleep(generator.uniform(0, 25))
            with contextlib.suppress(ProcessLookupError):
                os.kill(alive[generator.randrange(2)], signal.SIGKILL)
                kills += 1
        time.sleep(0.5)
    assert kills >= 10, "the training was too short for the kills"
    assert training.wait(timeout=900) == 0, (tmp_path / "killed.txt").read_text()
    assert_equal(contents(tmp_path / "whole"), contents(tmp_path / "killed"))
