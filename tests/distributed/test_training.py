"""Training by two processes ends in the same bits, also if one of them is killed."""

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

from rlcls import collect, files
from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.runs import checkpoint
from rlcls.train import main

OPTIONS = [
    *("agent=dqn", "loss=hlgauss", "env=gymnasium", "env.id=CartPole-v1", "recipe=vector", "env.num_envs=4"),
    *("eval.every=600", "eval.episodes=2", "checkpoint.every=300", "logging.every=300", "device=cpu"),
    *("replay.min_size=200", "replay.prioritized=true", "logging.tensorboard=false", "diagnostics.every=20"),
]
SPEED = ("seconds", "steps_per_second", "frames_per_second")


@pytest.fixture
def launch(tmp_path):
    """Starts a training of two processes in a folder. Processes that still run at the end of the test are killed."""
    begun = []

    def launch(name, *options, base=OPTIONS):
        command = [sys.executable, "-m", "rlcls.launch", "local", "--processes", "2", "--restarts", "30"]
        command += [
            "--logs",
            str(tmp_path / f"logs-{name}"),
            "--",
            *base,
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


def wait_for_checkpoint(run_dir, steps=0, seconds=300):
    end = time.monotonic() + seconds
    while (checkpoint.last_written(run_dir) or -1) < steps:
        assert time.monotonic() < end, f"no checkpoint of {steps} agent steps"
        time.sleep(0.1)


def processes_of(run_dir):
    """The system's process ids of a training, by the index of the process."""
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
    arrays = {f"tree/{name}": leaf for name, leaf in ocp.tree.to_flat_dict(tree, sep="/").items()}
    metrics = []
    for host, folder in enumerate((run_dir, run_dir / "hosts" / "1")[: newest.hosts]):
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


def test_a_run_whose_process_was_killed_ends_in_the_same_bits(launch, tmp_path):
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


def test_a_signal_to_any_process_saves_all_and_another_number_of_processes_continues(
    launch, tmp_path, capsys
):
    training, run_dir = launch("stopped", "steps=1000000"), tmp_path / "stopped"
    wait_for_checkpoint(run_dir, 300)
    begun = time.monotonic()
    os.kill(processes_of(run_dir)[1], signal.SIGTERM)
    assert training.wait(timeout=60) == 128 + signal.SIGTERM, (tmp_path / "stopped.txt").read_text()
    assert time.monotonic() - begun < 20
    steps, before, _ = contents(run_dir)
    config = compose(OPTIONS)
    with contextlib.closing(build.environment(config)) as env:
        loop = build.loop(config, build.agent(config, env.spec), env)
        fresh, (newest, _) = loop.save(), checkpoint.load(run_dir)
        assert newest.hosts == 2
        loop.restore(newest.dealt(fresh.tree, fresh.rows, loop, 0))
        after = ocp.tree.to_flat_dict(loop.save().tree, sep="/")
        loop.close()
    assert loop.counts["agent_steps"] == steps
    assert len(after) == sum(name.startswith("tree/") for name in before)
    for name, leaf in after.items():
        np.testing.assert_array_equal(leaf, before[f"tree/{name}"], err_msg=name)
    capsys.readouterr()
    assert main([*OPTIONS, f"steps={steps + 40}", f"run_dir={run_dir}"]) == 0
    expected = (
        "note: 2 processes wrote the checkpoint, and 1 continues from it: parameters, optimiser, counters, "
        "environments and replay are kept, and batches and random actions are drawn differently, so the results "
        "differ in bits"
    )
    assert expected in capsys.readouterr().err.splitlines()
    lines = (run_dir / "hosts/1/metrics.jsonl").read_text()
    assert launch("stopped", f"steps={steps + 80}").wait(timeout=240) == 0
    newest, _ = checkpoint.load(run_dir)
    assert (newest.steps, newest.hosts) == (steps + 80, 2)
    assert (
        "note: 1 process wrote the checkpoint, and 2 continue from it:"
        in (tmp_path / "stopped.txt").read_text()
    )
    assert (run_dir / "hosts/1/metrics.jsonl").read_text().startswith(lines)


CQL = ["env=probe", "game=probe/two_step", "recipe=vector", "agent=cql", "backbone.hidden=[16]"]
Q_TRANSFORMER = [
    "env=pick",
    "agent=qtransformer",
    "agent.bins=5",
    "agent.width=16",
    "agent.heads=2",
    "agent.layers=1",
]
RECORD = {"probe": ["policy=random", "steps=60"], "pick": ["policy=scripted", "episodes=8", "env.num_envs=8"]}
OFFLINE = [
    "loss=hlgauss",
    "data=recording",
    "data.sampling=epochs",
    "training.batch_size=32",
    "eval.every=0",
    "device=cpu",
]
# With Adam's usual epsilon a gradient that is only rounding errors moves a parameter as far as any other.
OFFLINE += [
    "agent.optimizer.eps=1e-3",
    "logging.every=10",
    "logging.tensorboard=false",
    "checkpoint.every=1000",
]


def recorded(options, path):
    """The options of an offline training, whose data is recorded in `path`."""
    where = [option for option in options if option.startswith(("env=", "game="))]
    assert collect.main([*where, *RECORD[options[0].removeprefix("env=")], f"out={path}"]) == 0
    return [*OFFLINE, *options, f"data.path={path}"]


def assert_close(first, second):
    """Asserts equal parameters up to rounding: both make the same updates, and sum gradients in another order."""
    assert first[0] == second[0]
    trees = [
        {name: leaf for name, leaf in each[1].items() if name.startswith("tree/")} for each in (first, second)
    ]
    assert trees[0].keys() == trees[1].keys()
    for name, values in trees[0].items():
        np.testing.assert_allclose(values, trees[1][name], rtol=0, atol=1e-5, err_msg=name)


def test_cql_learns_from_the_same_batches_if_two_processes_one_and_two_continue_in_turn(launch, tmp_path):
    command = recorded(CQL, tmp_path / "data")
    assert main([*command, "steps=60", f"run_dir={tmp_path / 'alone'}"]) == 0
    for steps in (20, 40, 60):
        if steps == 40:
            assert main([*command, f"steps={steps}", f"run_dir={tmp_path / 'both'}"]) == 0
        else:
            training = launch("both", f"steps={steps}", base=command)
            assert training.wait(timeout=240) == 0, (tmp_path / "both.txt").read_text()
    assert (
        "note: 1 process wrote the checkpoint, and 2 continue from it: parameters, optimiser and counters are kept"
        in (tmp_path / "both.txt").read_text()
    )
    assert_close(contents(tmp_path / "alone"), contents(tmp_path / "both"))


def test_a_q_transformer_learns_from_the_same_batches_in_two_processes(launch, tmp_path):
    command = [*recorded(Q_TRANSFORMER, tmp_path / "data"), "steps=20"]
    assert main([*command, f"run_dir={tmp_path / 'alone'}"]) == 0
    assert launch("both", base=command).wait(timeout=240) == 0, (tmp_path / "both.txt").read_text()
    assert_close(contents(tmp_path / "alone"), contents(tmp_path / "both"))


@pytest.mark.slow
@pytest.mark.skipif("RLCLS_SOAK" not in os.environ, reason="takes a quarter of an hour; RLCLS_SOAK=1 runs it")
def test_a_run_whose_processes_are_killed_twenty_times_ends_in_the_same_bits(launch, tmp_path):
    generator = random.Random(0)
    # A start takes minutes on a busy machine.
    options = ["steps=6000", "distributed.timeout=300"]
    assert launch("whole", *options).wait(timeout=900) == 0
    training = launch("killed", *options)
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
