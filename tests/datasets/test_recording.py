"""Recordings are plain files, and unfinished or damaged ones are detected."""

import errno
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.datasets import Recording, Rows, Transitions, Writer
from rlcls.datasets.recording import verify

COLUMNS = ("frames", "actions", "rewards", "terminals", "starts")


def contents(path):
    return {name: (path / f"{name}.bin").read_bytes() for name in COLUMNS}


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_the_files_are_the_plain_columns_and_the_manifest_has_their_checksums(
    tmp_path, record, make_rows, layout
):
    rows = make_rows(layout, [300, 40, 400])
    record(tmp_path / "a", rows)
    for name, column in zip(COLUMNS, rows, strict=True):
        data = (tmp_path / "a" / f"{name}.bin").read_bytes()
        assert data == column.tobytes()
        manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
        size, first = len(data) // 740, 0
        for count, digest in zip(manifest["chunks"], manifest["sha256"][name], strict=True):
            assert hashlib.sha256(data[first * size : (first + count) * size]).hexdigest() == digest
            first += count
        assert first == 740
    recording = Recording(tmp_path / "a")
    assert all((a == b).all() for a, b in zip(recording.columns, rows, strict=True))
    assert verify(tmp_path / "a") == []


def test_rows_can_be_appended_in_pieces_of_any_size(tmp_path, record, make_rows, layout):
    rows, random, first = make_rows(layout, [300, 40, 400]), np.random.default_rng(0), 0
    record(tmp_path / "a", rows)
    with Writer(tmp_path / "b", layout, {"made": "for a test"}) as writer:
        while first < 740:
            last = min(740, first + int(random.integers(1, 300)))
            writer.append(rows.part(first, last))
            first = last
        recording = writer.finish()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert recording.identity == Recording(tmp_path / "a").identity


def test_a_killed_writer_continues_after_its_last_commit(tmp_path, make_rows, layout):
    rows, ends = make_rows(layout, [300, 40, 400]), []
    for killed in (False, True):
        path = tmp_path / str(killed)
        with Writer(path, layout, {}) as writer:
            writer.append(rows.part(0, 340))
            writer.commit({"episodes": 2})
            if killed:
                writer.append(rows.part(340, 700))
        if killed:
            with pytest.raises(UserError, match=r"is unfinished \(340 rows\)"):
                Recording(path)
        with Writer(path, layout, {}) as writer:
            assert writer.progress == {"episodes": 2} and not writer.complete
            writer.append(rows.part(340, 740))
            writer.finish()
        ends.append((contents(path), Recording(path).identity))
    assert ends[0] == ends[1]


def test_bytes_that_a_kill_left_after_the_last_commit_are_dropped(tmp_path, make_rows, layout):
    rows = make_rows(layout, [300, 40])
    with Writer(tmp_path / "a", layout, {}) as writer:
        writer.append(rows.part(0, 300))
        writer.commit()
    with (tmp_path / "a" / "frames.bin").open("ab") as file:
        file.write(b"half a frame")
    with Writer(tmp_path / "a", layout, {}) as writer:
        writer.append(rows.part(300, 340))
        assert (writer.finish().columns.frames == rows.frames).all()


@pytest.mark.parametrize("name", COLUMNS)
def test_a_flipped_bit_never_reaches_a_batch(name, tmp_path, record, make_rows, layout):
    record(tmp_path / "a", make_rows(layout, [300, 40]))
    flip(tmp_path / "a" / f"{name}.bin")
    with pytest.raises(UserError, match=rf"{name}\.bin is damaged: rows 256 to 339 do not match"):
        data = Transitions(Recording(tmp_path / "a"), sampling="epochs")
        data.sample(data.count, 0, 0)


def test_verify_names_every_damaged_chunk_and_file(tmp_path, record, make_rows, layout):
    record(tmp_path / "a", make_rows(layout, [600, 200]))
    flip(tmp_path / "a" / "frames.bin", 0)
    flip(tmp_path / "a" / "frames.bin", 600 * 6)
    flip(tmp_path / "a" / "actions.bin", 300 * 4)
    (tmp_path / "a" / "starts.bin").unlink()
    lines = verify(tmp_path / "a")
    assert [line.partition("a/")[2].partition(" do not")[0] for line in lines] == [
        "frames.bin is damaged: rows 0 to 255",
        "frames.bin is damaged: rows 512 to 767",
        "actions.bin is damaged: rows 256 to 511",
        "starts.bin is missing",
    ]


def truncated(path):
    (path / "rewards.bin").write_bytes((path / "rewards.bin").read_bytes()[:-1])


def grown(path):
    with (path / "frames.bin").open("ab") as file:
        file.write(b"x")


def edited(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"Pong"', '"Qbert"'))


def older(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace("rlcls recording 2", "rlcls recording 0"))


DAMAGE = {
    truncated: r"rewards\.bin has 1,359 bytes instead of 1,360",
    grown: r"frames\.bin has 2,041 bytes instead of 2,040",
    lambda path: (path / "frames.bin").unlink(): r"frames\.bin is missing",
    lambda path: (path / "manifest.json").write_text(""): r"manifest\.json is damaged",
    lambda path: (path / "manifest.json").unlink(): r"is not a recording: it has no manifest\.json",
    edited: r"manifest\.json is damaged: its contents do not match their checksum",
    older: r"the format 'rlcls recording 0'; this version reads 'rlcls recording 1' and 'rlcls recording 2'",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: DAMAGE[damage][:30])
def test_damage_is_one_line_that_names_the_file(damage, tmp_path, record, make_rows, layout):
    record(tmp_path / "a", make_rows(layout, [300, 40]))
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=DAMAGE[damage]) as error:
        Recording(tmp_path / "a")
    assert len(str(error.value).splitlines()) == 1


def test_a_recording_from_before_truncated_episodes_were_marked_is_read(tmp_path, record, make_rows, layout):
    identity = record(tmp_path / "a", make_rows(layout, [30])).identity
    text = (tmp_path / "a" / "manifest.json").read_text()
    (tmp_path / "a" / "manifest.json").write_text(text.replace("rlcls recording 2", "rlcls recording 1"))
    assert Recording(tmp_path / "a").identity == identity


def test_a_writer_does_not_mix_recordings(tmp_path, record, make_rows, layout):
    record(tmp_path / "a", make_rows(layout, [300]))
    with pytest.raises(UserError, match="has a recording with another source or layout"):
        Writer(tmp_path / "a", layout, {"made": "elsewhere"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"has other files, such as thesis\.tex"):
        Writer(tmp_path / "b", layout, {})


@pytest.mark.untyped
def test_rows_of_another_layout_are_refused(tmp_path, make_rows, layout):
    rows = make_rows(layout, [30])
    wrong = {
        r"action 6 is not one of the 6 actions of Pong": rows._replace(
            actions=rows.actions + 6 - rows.actions.max()
        ),
        r"frames are float32 \[30, 2, 3\], not uint8": rows._replace(frames=rows.frames.astype(np.float32)),
        r"actions are int32 \[29\], not int32 \[30\]": rows._replace(actions=rows.actions[:-1]),
        r"must start an episode": rows.part(1, 30),
        r"a reward is not finite": rows._replace(rewards=np.full(30, np.nan, np.float32)),
    }
    with Writer(tmp_path / "a", layout, {}) as writer:
        for message, each in wrong.items():
            with pytest.raises(ValueError, match=message):
                writer.append(Rows(*each))


def test_identities_differ_when_contents_do(tmp_path, record, make_rows, layout):
    identities = {
        record(tmp_path / str(seed), make_rows(layout, [300], seed=seed)).identity for seed in range(3)
    }
    assert len(identities) == 3


def test_only_one_process_writes_a_recording(tmp_path, layout):
    program = (
        "import fcntl, os, sys\nfcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a")]
    with Writer(tmp_path / "a", layout, {}):
        assert b"BlockingIOError" in subprocess.run(command, capture_output=True).stderr
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk_is_one_line(tmp_path, make_rows, layout, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Writer(tmp_path / "a", layout, {}) as writer:
        writer.append(make_rows(layout, [300]))
        monkeypatch.setattr("rlcls.datasets.recording.os.fsync", full)
        with pytest.raises(UserError, match="cannot write .*a: No space left on device"):
            writer.commit()


def test_columns_without_a_manifest_are_other_files(tmp_path, layout):
    (tmp_path / "frames.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"has other files, such as frames\.bin"):
        Writer(tmp_path, layout, {})
    assert (tmp_path / "frames.bin").read_bytes() == b"mine"
