"""A checkpoint is whole or is not there, whatever is done to its files and wherever its writer is killed."""

import errno
import json
import logging
import shutil
import types
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls import files
from rlcls._errors import UserError
from rlcls.replay import FrameReplay
from rlcls.runs import Checkpoints, checkpoint, saving
from rlcls.runs import tree as trees
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
    newest = checkpoint.load(run_dir)[0]
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
            assert str(passed_over[0]).startswith(
                f"checkpoint {run_dir}/checkpoints/000000000020 is damaged ("
            )
            path.write_bytes(data)
    assert checkpoint.load(run_dir)[0].steps == 20


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"parts": []}', '{"parts": {"a": 1}}'])
def test_a_manifest_of_something_else_is_damage(text, two):
    run_dir, _, _ = two
    (run_dir / f"checkpoints/{20:012d}/manifest.json").write_text(text)
    assert checkpoint.load(run_dir)[0].steps == 10


def test_the_last_one_damaged_leaves_none_and_is_not_said_to_have_one_before(two):
    run_dir, _, _ = two
    for path in run_dir.glob("checkpoints/*/counters.json"):
        path.write_text("{}")
    found, passed_over = checkpoint.load(run_dir)
    assert found is None and [each.folder.name for each in passed_over] == [f"{20:012d}", f"{10:012d}"]
    with pytest.raises(UserError, match=r"20 is damaged \(.*\); there is none before it that is whole"):
        checkpoint.read(run_dir, "latest", TREE)


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
    found, passed_over = checkpoint.load(run_dir)
    assert found is None and path.name in passed_over[0].reason


def test_a_resumed_writer_goes_on_from_the_segments_that_are_there(two):
    run_dir, _, replay = two
    resumed = restored(run_dir)
    checkpoints = Checkpoints(run_dir, 2, checkpoint.load(run_dir)[0].segments)
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
    rename, left = Path.rename, renames

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
        patch.setattr(Path, "rename", die_after)
        save(checkpoints, replay, n="new")
        raise Killed  # the moment after
    assert not saving.tidy(run_dir)
    found, passed_over = checkpoint.load(run_dir)
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
        patch.setattr(trees, "write", full)
        save(checkpoints, replay)
    assert sorted(run_dir.rglob("*")) == before
    save(checkpoints, replay)  # there is room again
    assert checkpoint.load(run_dir)[0].steps == 21


def test_a_run_folder_that_was_removed_is_not_made_again_by_a_checkpoint(two):
    run_dir, checkpoints, replay = two
    shutil.rmtree(run_dir)
    with pytest.raises(UserError, match=f"cannot write the checkpoint 20 to {run_dir}: No such file"):
        save(checkpoints, replay)
    assert not run_dir.exists()


def test_without_posix_fallocate_room_is_asked_for_by_writing(two, monkeypatch):
    run_dir, checkpoints, replay = two
    monkeypatch.delattr(trees.os, "posix_fallocate")
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


@pytest.mark.parametrize(
    "name", ["my [2026] work", "a*b?", "50%25 #1", "~x", "s3:x", "{lr}", "a\\b", "größe", " x'\"$&|"]
)
def test_a_run_folder_may_have_any_name(name, tmp_path):
    (run_dir := tmp_path / name).mkdir()
    checkpoints, replay = Checkpoints(run_dir, 1), filled(10)
    for row in (10, 11):
        save(checkpoints, replay)
        add(replay, row)
    np.testing.assert_array_equal(restored(run_dir).frames[:, :11], replay.frames[:, :11])
    newest, tree, _ = checkpoint.read(run_dir, "latest", TREE)
    assert newest.steps == 11 and [path.name for path in newest.folder.parent.iterdir()] == [f"{11:012d}"]
    np.testing.assert_array_equal(tree["weights"], TREE["weights"])


def test_a_tree_that_reads_back_otherwise_is_no_checkpoint_and_the_one_before_stays(two, monkeypatch):
    run_dir, checkpoints, replay = two
    import orbax.checkpoint as ocp

    write = ocp.Checkpointer.save
    add(replay, 20)
    for harm in (lambda path: path.unlink(), lambda path: path.write_bytes(bytes(path.stat().st_size))):

        def save_and_harm(self, path, args, harm=harm):
            write(self, path, args=args)
            for file in (path / "d").iterdir():
                harm(file)

        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=r"checkpoint 21 .*: the tree .*read"),
        ):
            patch.setattr(ocp.Checkpointer, "save", save_and_harm)
            save(checkpoints, replay)
        assert checkpoint.load(run_dir)[0].steps == 20
        assert len(list((run_dir / "checkpoints").iterdir())) == 2
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"checkpoint 21 .*: rows-.* checksum"),
    ):
        patch.setattr(files, "_digest", lambda path: "another")
        save(checkpoints, replay)
    assert checkpoint.load(run_dir)[0].steps == 20


def test_a_tree_that_orbax_refuses_and_a_full_temporary_folder_are_one_line_each(two, monkeypatch):
    import orbax.checkpoint as ocp

    run_dir, checkpoints, replay = two
    add(replay, 20)

    def refuse(self, path, args):
        raise ValueError("NOT_FOUND: the bucket\nmore")

    def full(*_, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place, name, harm, reason in (
        (ocp.Checkpointer, "save", refuse, "Orbax cannot write the tree: NOT_FOUND: the bucket"),
        (
            trees.tempfile,
            "TemporaryDirectory",
            full,
            r"cannot make a temporary folder \(no space left\); set TMPDIR to another place",
        ),
    ):
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=rf"checkpoint 21 to .*: {reason}$"),
        ):
            patch.setattr(place, name, harm)
            save(checkpoints, replay)
        assert len(list((run_dir / "checkpoints").iterdir())) == 2 and checkpoint.load(run_dir)[0].steps == 20


def test_a_disk_that_fills_while_orbax_writes_is_one_line_without_a_traceback(two, monkeypatch, caplog):
    import orbax.checkpoint as ocp

    def fail(self, path, args):
        logging.getLogger("absl").error(
            "a thread raised an exception", exc_info=OSError(errno.ENOSPC, "full")
        )
        raise ValueError(
            "RESOURCE_EXHAUSTED: Failed to write 1254 bytes: No space left on device [os_error_code='28']"
        )

    _, checkpoints, replay = two
    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with caplog.at_level(logging.INFO, logger="absl"), pytest.raises(UserError, match=r": no space left$"):
        save(checkpoints, replay, 22)
    assert not caplog.records
    logging.getLogger("absl").error("heard again")
    assert caplog.records


def test_without_its_replay_a_checkpoint_is_read_and_not_resumed(two):
    run_dir, _, _ = two
    shutil.rmtree(run_dir / "replay")
    assert checkpoint.load(run_dir)[0] is None
    assert len(checkpoint.folders(run_dir)) == 2  # nothing is removed
    newest, tree, remarks = checkpoint.read(run_dir, "latest", TREE)
    assert newest.steps == 20 and tree["weights"][3] == 3 and not remarks
    assert checkpoint.load(run_dir, replay=False)[0].steps == 20


@pytest.mark.parametrize("wanted", ["latest", "best", "20"])
def test_a_checkpoint_that_training_takes_away_meanwhile_is_read_from_the_next_one(wanted, two, monkeypatch):
    run_dir, checkpoints, _ = two
    checkpoints.save(20, Saved(TREE, {}, {}), best={"steps": 20, "return_mean": 1.0})
    read_tree = checkpoint.Checkpoint.tree

    def tree(self, like):
        if self.steps == 20:
            for row in (30, 40):
                checkpoints.save(row, Saved(TREE, {}, {}), best={"steps": 40, "return_mean": 2.0})
        return read_tree(self, like)

    monkeypatch.setattr(checkpoint.Checkpoint, "tree", tree)
    if wanted == "20":
        with pytest.raises(UserError, match=r"has no checkpoint 20 \(latest, 30, 40\)"):
            checkpoint.read(run_dir, wanted, TREE)
    else:
        newest, _, remarks = checkpoint.read(run_dir, wanted, TREE)
        assert newest.steps == 40 and not remarks


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(two, monkeypatch):
    run_dir, checkpoints, _ = two
    read_tree, replaced = checkpoint.Checkpoint.tree, []

    def tree(self, like):
        if not replaced:
            replaced.append(self)
            checkpoints.save(20, Saved({"weights": -TREE["weights"]}, {}, {}), seconds=2.5)
        return read_tree(self, like)

    monkeypatch.setattr(checkpoint.Checkpoint, "tree", tree)
    newest, tree, _ = checkpoint.read(run_dir, "latest", TREE)
    assert newest.counters["seconds"] == 2.5 and tree["weights"][3] == -3


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_typed_random_key_in_the_tree_comes_back_equal_and_typed(impl, tmp_path):
    tree = {"acting": {"key": jax.random.key(3, impl=impl)}, "keys": jax.random.split(jax.random.key(4), 5)}
    with jax.transfer_guard("disallow"):
        Checkpoints(tmp_path, 1).save(1, Saved(tree, {}, {}))
    newest = checkpoint.load(tmp_path)[0]
    part = newest.tree({"acting": jax.eval_shape(lambda: tree["acting"])})
    for restored, whole in ((newest.tree(tree), tree), (part, {"acting": tree["acting"]})):
        assert jax.tree.map(lambda key: key.dtype, restored) == jax.tree.map(lambda key: key.dtype, whole)
        chex.assert_trees_all_equal(*(jax.tree.map(jax.random.key_data, each) for each in (restored, whole)))


def test_a_tree_of_another_shape_is_one_line(two):
    run_dir, _, _ = two
    for like, problem in (
        ({"weights": np.zeros(7)}, r"weights has shape \[6\] there, but \[7\] in the configuration"),
        ({"bias": np.zeros(6)}, "it has no bias"),
    ):
        with pytest.raises(UserError, match=f"{20:012d} does not fit the run's configuration: {problem}"):
            checkpoint.read(run_dir, "latest", like)


def test_permanent_and_best_checkpoints_stay_without_their_segments(tmp_path):
    checkpoints, replay = Checkpoints(tmp_path, 2), filled()
    for row in range(6):
        add(replay, row)
        saved = Saved(TREE, {}, {}, replay)
        best = {"steps": min(row, 2), "return_mean": 0.0}
        checkpoints.save(row, saved, permanent=row in (0, 3), best=best)
        for _ in range(20):
            add(replay, 50)
    assert [int(folder.name) for folder in checkpoint.folders(tmp_path)] == [0, 2, 3, 4, 5]
    listed = {segment.path for steps in (4, 5) for segment in opened(tmp_path, steps).segments}
    assert set((tmp_path / "replay").iterdir()) == listed
    assert [checkpoint.read(tmp_path, wanted, TREE)[0].steps for wanted in ("0", "best", "latest")] == [
        0,
        2,
        5,
    ]
    checkpoints.save(5, Saved(TREE, {}, {}, replay), permanent=True)
    checkpoints.save(5, Saved(TREE, {}, {}, replay))  # written again, it is still permanent
    for row in (6, 7, 8):
        checkpoints.save(row, Saved(TREE, {}, {}, replay))
    assert [int(folder.name) for folder in checkpoint.folders(tmp_path)] == [0, 3, 5, 7, 8]


def opened(run_dir, steps):
    return checkpoint.open_whole(run_dir, run_dir / f"checkpoints/{steps:012d}")


def test_a_run_without_a_best_checkpoint_says_so(two):
    with pytest.raises(UserError, match=r"has no best checkpoint: checkpoint.keep_best=true keeps it"):
        checkpoint.read(two[0], "best", TREE)


def test_what_cannot_be_removed_is_a_remark(two, monkeypatch):
    run_dir, checkpoints, replay = two

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    rmtree = lambda path, ignore_errors=False: ignore_errors or refuse(path)  # noqa: E731
    monkeypatch.setattr(saving, "shutil", types.SimpleNamespace(rmtree=rmtree))
    add(replay, 20)
    arrays, counters = replay.save()
    remarks = checkpoints.save(21, Saved(TREE, arrays, counters, replay))
    assert remarks == [f"cannot remove the checkpoint {run_dir}/checkpoints/{10:012d}: Permission denied"]
    (run_dir / "checkpoints" / f".{30:012d}.partial").mkdir()
    assert saving.tidy(run_dir) == [
        f"cannot remove {run_dir}/checkpoints/.{30:012d}.partial: Permission denied"
    ]


def test_a_foreign_file_in_a_checkpoint_stays_when_the_checkpoint_goes(two):
    run_dir, checkpoints, replay = two
    foreign = run_dir / "checkpoints" / f"{10:012d}" / ".DS_Store"
    foreign.write_text("")
    for row in range(20, 23):
        add(replay, row)
        save(checkpoints, replay)
    assert [path.name for path in foreign.parent.iterdir()] == [".DS_Store"]
    newest, remarks = checkpoint.load(run_dir)
    assert newest.steps == 23 and not remarks and len(checkpoint.folders(run_dir)) == 2


def test_what_is_not_a_checkpoint_is_neither_read_nor_removed(two):
    run_dir, checkpoints, replay = two
    foreign = [
        run_dir / name
        for name in (
            "checkpoints/.nfs0001",
            "checkpoints/.000000000007.partial",  # a file, where ours would be a folder
            "checkpoints/000000000020-copy",
            "checkpoints/2",
            "checkpoints/lost+found",
            "replay/.DS_Store",
            "replay/rows-notes.txt",
            "replay/rows-000000000000-000000000010.npz.zst~",
            "replay/rows-lost",
        )
    ]
    for path in foreign:
        path.write_text("") if "." in path.name else path.mkdir()
    assert not saving.tidy(run_dir)
    checkpoint_now, damaged = checkpoint.load(run_dir)
    assert checkpoint_now.steps == 20 and not damaged
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
