"""A checkpoint is whole or is not there, whatever is done to its files and wherever its writer is killed."""

import errno
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.replay import FrameReplay
from rlcls.runs import Checkpoints, checkpoint, files
from rlcls.training import Saved

TREE = {"weights": np.arange(6.0)}


def filled(rows=0) -> FrameReplay:
    replay = FrameReplay(2, 60, frame_shape=(3,), stack=2)
    for row in range(rows):
        add(replay, row)
    return replay


def add(replay, row):
    line = np.full(2, row)
    replay.add(np.full((2, 2, 3), row, np.uint8), line, line * 1.0, line > 99, line == 0)


def save(checkpoints, replay, n=None):
    arrays, counters = replay.save()
    saved = Saved(TREE, {"a": np.arange(3)} | arrays, {"n": n or replay.rows, "replay": counters}, replay)
    checkpoints.save(replay.rows, saved, seconds=1.5)


def restored(run_dir) -> FrameReplay:
    replay = filled()
    newest = Checkpoints(run_dir, 2).resume()[0]
    saved = newest.saved(TREE, replay)
    replay.restore(saved.arrays, saved.counters["replay"])
    return replay


@pytest.fixture
def two(tmp_path):
    """A run folder with checkpoints after 10 and 20 rows, their writer and the replay."""
    checkpoints, replay = Checkpoints(tmp_path, 2), filled(10)
    save(checkpoints, replay)
    for row in range(10, 20):
        add(replay, row)
    save(checkpoints, replay)
    return tmp_path, checkpoints, replay


def parts(run_dir, agent_steps):
    return json.loads((run_dir / f"checkpoints/{agent_steps:012d}/manifest.json").read_text())["parts"]


def test_damage_to_any_file_of_a_checkpoint_is_seen(two):
    run_dir, _, _ = two
    own = sorted(parts(run_dir, 20).keys() - parts(run_dir, 10).keys())
    assert {name.split("/")[2] for name in own if name.startswith("checkpoints")} == {
        "arrays.npz.zst",
        "counters.json",
        "tree",  # Orbax's files
    }
    for name in [*own, "checkpoints/000000000020/manifest.json"]:
        path = run_dir / name
        data = path.read_bytes()
        flipped = bytes([*data[:-1], data[-1] ^ 1]) if data else b"x"
        for harm in (flipped, data[: len(data) // 2], None):
            if harm == data or (harm == flipped and path.name == "manifest.json"):
                continue  # the last byte of the manifest, a brace, says nothing but that it is whole
            path.unlink() if harm is None else path.write_bytes(harm)
            found, passed_over = checkpoint.load(run_dir)
            assert found is not None and found.steps == 10, (name, harm)
            assert passed_over[0].startswith(f"checkpoint {run_dir}/checkpoints/000000000020 is damaged (")
            assert passed_over[0].endswith("falling back to the one before")
            path.write_bytes(data)
    assert checkpoint.load(run_dir)[0].steps == 20


def test_the_last_one_damaged_leaves_none_and_is_not_said_to_have_one_before(two):
    run_dir, _, _ = two
    for path in run_dir.glob("checkpoints/*/counters.json"):
        path.write_text("{}")
    found, passed_over = checkpoint.load(run_dir)
    assert found is None and len(passed_over) == 2
    assert passed_over[0].endswith("falling back to the one before")
    assert passed_over[1].endswith("there is none before it")


def test_a_checkpoint_reads_no_segment_that_was_there_before_and_takes_no_damage_for_the_truth(
    two, monkeypatch
):
    run_dir, checkpoints, replay = two
    old = {path.name for path in (run_dir / "replay").iterdir()}
    read, digest = [], files._digest
    monkeypatch.setattr(files, "_digest", lambda path: (read.append(path.name), digest(path))[1])
    path = run_dir / "replay" / sorted(old)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    add(replay, 20)
    save(checkpoints, replay)
    assert not old & set(read) and len([name for name in read if name.startswith("rows-")]) == 1
    found, passed_over = Checkpoints(run_dir, 2).resume()
    assert found is None and path.name in passed_over[0]


def test_a_resumed_writer_goes_on_from_the_segments_that_are_there(two):
    run_dir, _, replay = two
    resumed, checkpoints = restored(run_dir), Checkpoints(run_dir, 2)
    checkpoints.resume()
    add(resumed, 20)
    save(checkpoints, resumed)
    add(replay, 20)
    again = restored(run_dir)
    np.testing.assert_array_equal(again.frames, replay.frames)
    np.testing.assert_array_equal(again.priorities.weights, replay.priorities.weights)
    assert len(list((run_dir / "replay").iterdir())) == 3


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_a_checkpoint_replaces_its_like_leaves_one_of_them(renames, two, monkeypatch):
    run_dir, checkpoints, replay = two
    rename, left = checkpoint.Path.rename, renames

    class Killed(BaseException):
        pass

    def die_after(path, target):
        nonlocal left
        if path.is_dir():
            if not left:
                raise Killed
            left -= 1
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint.Path, "rename", die_after)
        save(checkpoints, replay, n="new")
        raise Killed  # the moment after
    found, passed_over = Checkpoints(run_dir, 2).resume()
    assert found.steps == 20 and not passed_over
    assert found.counters["loop"]["n"] == ("new" if renames == 2 else 20)
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == [f"{10:012d}", f"{20:012d}"]


def test_a_disk_that_fills_leaves_the_checkpoint_before_and_nothing_of_the_new_one(two, monkeypatch):
    run_dir, checkpoints, replay = two
    before = sorted(run_dir.rglob("*"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    add(replay, 20)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="checkpoint 21 .*: no space left"):
        patch.setattr(checkpoint, "_save_tree", full)
        save(checkpoints, replay)
    assert sorted(run_dir.rglob("*")) == before
    save(checkpoints, replay)  # there is room again
    assert checkpoint.load(run_dir)[0].steps == 21


def test_without_posix_fallocate_room_is_asked_for_by_writing(two, monkeypatch):
    run_dir, checkpoints, replay = two
    monkeypatch.delattr(checkpoint.os, "posix_fallocate")
    add(replay, 20)
    save(checkpoints, replay)
    assert checkpoint.load(run_dir)[0].steps == 21


def test_a_part_of_the_tree_is_read_alone(two):
    run_dir, checkpoints, _ = two
    tree = {
        "acting": {"weights": np.arange(3.0)},
        "state": {"step": np.int32(4), "moments": (np.ones(2), np.ones(2))},
    }
    checkpoints.save(30, Saved(tree, {}, {}, None))
    newest = checkpoint.load(run_dir)[0]
    assert newest.steps == 30 and newest.segments == []
    part = newest.tree({"acting": {"weights": np.zeros(3)}})
    np.testing.assert_array_equal(part["acting"]["weights"], np.arange(3.0))
    assert part.keys() == {"acting"}


def test_rows_that_left_the_ring_between_two_checkpoints_are_neither_written_nor_missed(tmp_path):
    checkpoints, replay = Checkpoints(tmp_path, 1), filled(10)
    save(checkpoints, replay)
    for row in range(10, 75):
        add(replay, row)
    save(checkpoints, replay)
    (segment,) = checkpoint.load(tmp_path)[0].segments
    assert (segment.first, segment.last) == (45, 75)  # a ring of 30 rows
    np.testing.assert_array_equal(restored(tmp_path).frames, replay.frames)


def test_what_is_not_a_checkpoint_is_neither_read_nor_removed(two):
    run_dir, checkpoints, replay = two
    foreign = [run_dir / "checkpoints" / name for name in (".nfs0001", "000000000020-copy", "2")]
    for path in foreign[1:]:
        path.mkdir()
    foreign[0].write_text("")
    checkpoint_now, remarks = Checkpoints(run_dir, 2).resume()
    assert checkpoint_now.steps == 20 and not remarks
    for row in range(20, 30):
        add(replay, row)
        save(checkpoints, replay)
    assert all(path.exists() for path in foreign)


def test_weights_are_read_without_a_word_on_the_devices_that_wrote_them(tmp_path):
    layers = {"layers": {0: {"bias": jnp.ones(2)}}}
    Checkpoints(tmp_path, 1).save(1, Saved({"state": jnp.zeros(9), "acting": layers}, {}, {}))
    like = jax.eval_shape(lambda: {"acting": layers})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = checkpoint.load(tmp_path)[0].tree(like)
    np.testing.assert_array_equal(tree["acting"]["layers"][0]["bias"], np.ones(2))
