"""Recordings written in the published forms, and read back by the readers of these forms."""

import gzip
import json
import sys

import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.datasets import (
    BEGINS,
    CONTINUES,
    CUT,
    TRUNCATED,
    Layout,
    Rows,
    Transitions,
    export,
    open_dqn_replay,
    open_minari,
)
from rlcls.datasets.__main__ import main

PONG = Layout(game="Pong", frame_shape=(84, 84), stack=4, num_actions=6)
ARM = Layout(game="arm", frame_shape=(3,), frame_dtype="float32", action_low=(-1, -1), action_high=(1, 1))
# (start, rows, terminal at row or None): with and without a final observation, truncated, cut at either end.
EPISODES = [
    (CUT, 9, 7),
    (BEGINS, 8, 6),
    (BEGINS, 7, 6),
    (BEGINS, 6, None),
    (BEGINS, 5, 3),
    (CUT, 4, None),
    (BEGINS, 1, None),
]


def play(layout, episodes, seed=0):
    random, parts = np.random.default_rng(seed), []
    for start, count, terminal in episodes:
        starts = np.full(count, CONTINUES, np.uint8)
        starts[0] = start
        if layout.frame_dtype == "uint8":
            frames = random.integers(1, 256, (count, *layout.frame_shape), np.uint8)
        else:
            frames = random.normal(size=(count, *layout.frame_shape)).astype(layout.frame_dtype)
        if layout.num_actions:
            actions = random.integers(0, layout.num_actions, count, np.int32)
        else:
            actions = random.uniform(-1, 1, (count, 2)).astype(np.float32)
        rewards = random.integers(-1, 2, count).astype(np.float32)
        parts.append(Rows(frames, actions, rewards, np.arange(count) == terminal, starts))
    return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def same_transitions(one, other, *, starts_at=None):
    """Whether two data sets have the same transitions; those of `one` are looked for in `other` by their frames."""
    columns, place = one.recording.columns, {}
    for row, frame in enumerate(other.recording.columns.frames):
        place.setdefault(frame.tobytes(), row)  # a repeated final observation comes second
    rows = one._first_rows if starts_at is None else starts_at
    batch, read = (
        one.at(rows),
        other.at(np.array([place[columns.frames[row].tobytes()] for row in rows])),
    )
    for name in ("observation", "action", "reward", "discount"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(read, name), name)
    alive = batch.discount > 0
    np.testing.assert_array_equal(batch.next_observation[alive], read.next_observation[alive])


def test_dqn_replay_gives_back_every_transition(tmp_path, record):
    recording = record(tmp_path / "a", play(PONG, EPISODES), PONG)
    assert export.to_dqn_replay(recording, tmp_path / "dqn") == []
    data = open_dqn_replay(tmp_path / "dqn", "Pong", n_step=2)
    same_transitions(Transitions(recording, n_step=2), data)
    assert data.count == Transitions(recording).count
    # Each truncated or cut episode ends a checkpoint, and one that is cut at its beginning begins one.
    logs = tmp_path / "dqn" / "Pong" / "1" / "replay_logs"
    assert len(list(logs.glob("$store$_observation_ckpt.*.gz"))) == 4
    written = recording.columns.num_rows - 3  # without the final observations of terminated episodes
    assert data.recording.columns.num_rows == written


def test_what_was_read_from_dqn_replay_is_written_as_it_was(tmp_path, record):
    first = record(tmp_path / "a", play(PONG, EPISODES), PONG)
    export.to_dqn_replay(first, tmp_path / "one")
    read = open_dqn_replay(tmp_path / "one", "Pong").recording
    assert export.to_dqn_replay(read, tmp_path / "two") == []
    again = open_dqn_replay(tmp_path / "two", "Pong").recording
    assert [c.tobytes() for c in read.columns] == [c.tobytes() for c in again.columns]
    logs = [tmp_path / name / "Pong" / "1" / "replay_logs" for name in ("one", "two")]
    names = sorted(path.name for path in logs[0].iterdir())
    assert names == sorted(path.name for path in logs[1].iterdir())
    assert all((logs[0] / name).read_bytes() == (logs[1] / name).read_bytes() for name in names)


def test_checkpoints_are_no_longer_than_those_that_were_published(tmp_path, record, monkeypatch):
    monkeypatch.setattr(export, "_CHECKPOINT", 40)
    recording = record(tmp_path / "a", play(PONG, [(BEGINS, 15, 14)] * 7), PONG)
    export.to_dqn_replay(recording, tmp_path / "dqn")
    logs = tmp_path / "dqn" / "Pong" / "1" / "replay_logs"
    counts = []
    for number in range(4):
        with gzip.open(logs / f"add_count_ckpt.{number}.gz") as file:
            counts.append(int(np.load(file)))
    assert counts == [36, 36, 36, 18]
    same_transitions(Transitions(recording), open_dqn_replay(tmp_path / "dqn", "Pong"))


def test_large_rewards_are_clipped_as_dqn_replay_has_them(tmp_path, record):
    rows = play(PONG, [(BEGINS, 9, 8)])
    rows.rewards[:3] = 4, -2.5, 0.5
    recording = record(tmp_path / "a", rows, PONG)
    assert export.to_dqn_replay(recording, tmp_path / "dqn") == [
        "rewards beyond -1 or 1, which are clipped as in the published files: 2"
    ]
    read = open_dqn_replay(tmp_path / "dqn", "Pong").recording
    np.testing.assert_array_equal(read.columns.rewards, np.clip(rows.rewards, -1, 1))


@pytest.mark.parametrize("layout", [PONG, ARM], ids=["Pong", "arm"])
def test_minari_gives_back_every_transition(layout, tmp_path, record):
    pytest.importorskip("h5py")
    recording = record(tmp_path / "a", play(layout, EPISODES), layout)
    notes = export.to_minari(recording, tmp_path / "b-v0")
    assert notes == [
        "episodes that were under way at their first row, and begin there: 2",
        "episodes without a final observation, whose last one is repeated: 1",
        "episodes of one row, in which no transition starts, that are left out: 1",
    ]
    data, read = Transitions(recording, n_step=2), open_minari(tmp_path / "b-v0", n_step=2)
    same_transitions(data, read)
    # Nothing marks the first frames of an episode that was under way, so stacks begin there.
    begun_before = 3 if layout.stack else 0
    assert read.count == data.count + 2 * begun_before
    assert read.spec.observation == data.spec.observation


def test_minari_gives_back_whole_episodes_to_the_bit(tmp_path, record):
    pytest.importorskip("h5py")
    rows = play(PONG, [(BEGINS, 70, 68), (BEGINS, 6, None), (BEGINS, 5, 3)])
    last = np.array([69, 75, 80])
    rows.actions[last], rows.rewards[last] = 0, 0  # the form has none there
    rows.starts[75] = TRUNCATED  # as the form says of each episode without a terminal
    recording = record(tmp_path / "a", rows, PONG)
    assert export.to_minari(recording, tmp_path / "b-v0") == []
    read = open_minari(tmp_path / "b-v0", fraction=1.0).recording
    assert [c.tobytes() for c in read.columns] == [c.tobytes() for c in rows]


@pytest.mark.parametrize("layout", [PONG, ARM], ids=["Pong", "arm"])
def test_the_minari_package_reads_what_was_written(layout, tmp_path, record, monkeypatch):
    minari = pytest.importorskip("minari")
    rows = play(layout, [(BEGINS, 9, 7), (BEGINS, 6, None)])
    export.to_minari(record(tmp_path / "a", rows, layout), tmp_path / "mine-v0")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = minari.load_dataset("mine-v0")
    assert (data.total_episodes, data.total_steps) == (2, 8 + 5)
    one, two = data.iterate_episodes()
    np.testing.assert_array_equal(one.observations, rows.frames[:9])
    np.testing.assert_array_equal(two.actions, rows.actions[9:14])
    np.testing.assert_array_equal(one.rewards, rows.rewards[:8])
    assert one.terminations[-1] and not one.truncations[-1] and two.truncations[-1]
    assert data.observation_space.contains(one.observations[0])


def test_a_flipped_bit_in_a_written_minari_file_is_noticed(tmp_path, record):
    pytest.importorskip("h5py")
    export.to_minari(record(tmp_path / "a", play(PONG, [(BEGINS, 70, 68)]), PONG), tmp_path / "b-v0")
    file = tmp_path / "b-v0" / "data" / "main_data.hdf5"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1  # nearly all of the file is frames
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"main_data\.hdf5 is damaged"):
        open_minari(tmp_path / "b-v0")


def test_what_a_form_cannot_hold_is_one_line_and_leaves_nothing(tmp_path, record):
    pytest.importorskip("h5py")
    lives, small, zeros = (
        play(PONG, [(BEGINS, 9, 3)]),
        play(PONG, [(BEGINS, 9, 8)]),
        play(PONG, [(CUT, 9, 8)]),
    )
    zeros.frames[:3], zeros.actions[:3] = 0, 0
    other = Layout(game="Pong", frame_shape=(2, 3), stack=4, num_actions=6)
    plain = Layout(game="Pong", frame_shape=(84, 84), num_actions=6)
    all_actions = Layout(game="Pong", frame_shape=(84, 84), stack=4, num_actions=18)
    arm = play(ARM, [(BEGINS, 9, 8)])
    for number, (write, layout, rows, message) in enumerate(
        [
            (export.to_dqn_replay, PONG, lives, "row 3 is terminal and its episode goes on"),
            (export.to_dqn_replay, PONG, zeros, "rows 0 to 2 are zeros"),
            (export.to_dqn_replay, ARM, arm, r"frame_shape is \(3,\), and \(84, 84\) in this form"),
            (export.to_dqn_replay, all_actions, small, "num_actions is 18, and 6 in this form"),
            (export.to_minari, other, play(other, [(BEGINS, 9, 8)]), "stack is 4, and 0 in this form"),
            (export.to_minari, plain, small, "stack is 0, and 4 in this form"),
        ]
    ):
        recording = record(tmp_path / str(number), rows, layout)
        with pytest.raises(UserError, match=message) as error:
            write(recording, tmp_path / "out")
        assert len(str(error.value).splitlines()) == 1 and not list(tmp_path.glob("out/**/*.*"))


def test_the_command_exports_and_refuses_to_overwrite(tmp_path, record, capsys):
    pytest.importorskip("h5py")
    record(tmp_path / "a", play(PONG, EPISODES), PONG)
    here = ["data=recording", f"data.path={tmp_path}/a"]
    for form, made in (("minari", "m-v0/data/metadata.json"), ("dqn_replay", "m-v0/Pong/1/replay_logs")):
        command = ["export", f"format={form}", *here, f"out={tmp_path}/m-v0"]
        assert main(command) == 0
        assert "40 / 40 rows" in capsys.readouterr().out and (tmp_path / made).exists()
        assert main(command) == 2
        assert "exists; name another folder" in capsys.readouterr().err
    assert json.loads((tmp_path / "m-v0/data/metadata.json").read_text())["dataset_id"] == "m-v0"
    for message, arguments in {
        "unknown format 'minary'; did you mean 'minari'? (dqn_replay, minari)": ["format=minary", *here],
        "give the format: format= (dqn_replay, minari)": here,
        "give the output folder: out=FOLDER": ["format=minari", *here],
    }.items():
        assert main(["export", *arguments]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"


def test_an_export_without_h5py_is_refused_before_any_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert (
        main(["export", "format=minari", "data=recording", f"data.path={tmp_path}/a", f"out={tmp_path}/b-v0"])
        == 2
    )
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(
        'error: HDF5 files need h5py: pip install "rlcls[data]", or in a checkout of rlcls pip install -e ".[data]" ('
    )
