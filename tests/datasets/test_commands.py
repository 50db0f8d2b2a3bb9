"""The commands `python -m rlcls.datasets inspect|convert|verify`, and training from a recording."""

import dataclasses
import json

import numpy as np
import pytest

from rlcls import datasets, train
from rlcls.datasets import BEGINS, CONTINUES, Layout, Rows, Transitions, Writer
from rlcls.datasets.__main__ import main
from rlcls.datasets.conversion import Conversion, Part
from rlcls.envs.probe import PROBES


def test_inspect_prints_counts_and_draws_frames(tmp_path, record, make_rows, layout, capsys):
    large = dataclasses.replace(layout, frame_shape=(84, 84))
    rows = make_rows(large, [30, 20])
    record(tmp_path / "a", rows, large)
    picture = tmp_path / "frames.png"
    assert main(["inspect", "data=recording", f"data.path={tmp_path}/a", f"out={picture}"]) == 0
    shown = capsys.readouterr().out
    returns = [rows.rewards[:30].sum(), rows.rewards[30:].sum()]
    assert "rows          50, of which 48 start a transition" in shown
    assert "episodes      2, 25.0 rows on average" in shown
    assert f"returns       mean {np.mean(returns):g}, median {np.median(returns):g}" in shown
    for action, count in enumerate(np.bincount(rows.actions, minlength=6)):
        assert f"action {action}      {count / 50:6.1%}" in shown
    assert picture.stat().st_size > 10_000


def test_verify_names_every_damaged_chunk(tmp_path, record, make_rows, layout, capsys):
    for name in "ab":
        record(tmp_path / name, make_rows(layout, [600]))
    assert main(["verify", str(tmp_path / "a")]) == 0 and "a is whole" in capsys.readouterr().out
    data = bytearray((tmp_path / "b" / "frames.bin").read_bytes())
    data[0] ^= 1
    data[-1] ^= 1
    (tmp_path / "b" / "frames.bin").write_bytes(data)
    assert main(["verify", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    whole, *damaged = capsys.readouterr().out.splitlines()
    assert whole.endswith("a is whole") and [line.partition("damaged: ")[2][:15] for line in damaged] == [
        "rows 0 to 255 d",
        "rows 512 to 599",
    ]


def test_convert_makes_a_recording_and_continues_after_a_kill(tmp_path, make_rows, layout):
    rows, reads = make_rows(layout, [300, 100, 200]), []
    killed = True

    def part(first, last):
        def read():
            reads.append(first)
            yield rows.part(first, last)
            if killed and first == 300:
                raise KeyboardInterrupt

        return Part(f"rows from {first}", read)

    parts = [part(0, 300), part(300, 400), part(400, 600)]
    conversion = Conversion(tmp_path, layout, {"files": []}, parts)
    with pytest.raises(KeyboardInterrupt):
        conversion.write(tmp_path / "a")
    killed = False
    recording = conversion.write(tmp_path / "a")
    assert reads == [0, 300, 300, 400]
    assert all((a == b).all() for a, b in zip(recording.columns, rows, strict=True))
    assert recording.identity == conversion.write(tmp_path / "b").identity
    assert (
        len(reads) == 7
        and conversion.write(tmp_path / "a").identity == recording.identity
        and len(reads) == 7
    )


def test_mistakes_on_the_command_line_are_one_line(tmp_path, record, make_rows, layout, capsys):
    record(tmp_path / "a", make_rows(layout, [30]))
    here = f"data.path={tmp_path}/a"
    for message, arguments in {
        "unknown command 'inspekt'; did you mean 'inspect'?": ["inspekt"],
        "give the kind of data: data=dqn_replay": ["inspect"],
        "give the folder of the data: data.path=FOLDER": ["inspect", "data=dqn_replay"],
        "data=recording cannot be converted": ["convert", "data=recording", here, f"out={tmp_path}/b"],
        "give the folder of the recording: out=FOLDER": ["convert", "data=minari", here],
        "fraction must be above 0": ["convert", "data=minari", here, "data.fraction=2", f"out={tmp_path}/b"],
        f"{tmp_path}/a holds Pong, not Qbert": ["inspect", "data=recording", here, "data.game=Qbert"],
        "data: n_step must be at least 1": ["inspect", "data=recording", here, "data.n_step=0"],
        "name the recordings to verify": ["verify"],
        "is not a recording": ["verify", str(tmp_path)],
    }.items():
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "b").exists()


def test_one_command_trains_an_agent_from_a_recording(tmp_path, capsys):
    probe = PROBES["probe/action"]
    layout = Layout(game="probe/action", frame_shape=(1,), frame_dtype="float32", num_actions=2)
    random, count = np.random.default_rng(0), 500
    starts, terminals = np.full(count, CONTINUES, np.uint8), np.zeros(count, bool)
    starts[::2], terminals[::2] = BEGINS, True
    actions = random.integers(0, 2, count, np.int32)
    rewards = np.where(actions == 1, 1, -1).astype(np.float32) * terminals
    frames = np.zeros((count, 1), np.float32)
    assert (frames[0] == probe.observations()[0]).all()
    with Writer(tmp_path / "a", layout, {}) as writer:
        writer.append(Rows(frames, actions, rewards, terminals, starts))
        assert Transitions(writer.finish()).spec.observation.shape == (1,)
    run = ["loop=offline", "data=recording", f"data.path={tmp_path}/a", "env=probe", "game=probe/action"]
    run += ["backbone=mlp", "steps=600", "eval.every=600", "eval.episodes=4", "checkpoint.every=600"]
    run += ["logging.tensorboard=false", f"run_dir={tmp_path}/run", "data.sampling=epochs"]
    assert train.main(run) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["return_mean"] == 1.0


def test_the_package_exports_its_parts():
    assert all(hasattr(datasets, name) for name in datasets.__all__)
