"""Writes are atomic, also if two processes write the same file."""

import stat

import pytest

from rlcls import files
from rlcls._errors import UserError


def test_two_writers_of_one_file_use_different_temporary_files(tmp_path):
    path = tmp_path / "picture.png"
    with files.replacing(path) as first, files.replacing(path) as second:
        assert first != second and first.suffix == second.suffix == ".png"
        assert files.is_foreign(first.name)  # the file that a kill leaves is ignored
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_the_mode_of_a_new_file_follows_the_umask(tmp_path):
    (tmp_path / "plain").write_text("")
    files.write_text(tmp_path / "ours", "text")
    plain, ours = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours"))
    assert ours == plain


def test_a_folder_is_renamed_after_it_is_filled(tmp_path):
    with files.filling(tmp_path / "data") as folder:
        (folder / "one").write_text("1")
        assert not (tmp_path / "data").exists() and files.is_foreign(folder.name)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    with pytest.raises(UserError, match="data exists; name another folder"), files.filling(tmp_path / "data"):
        pass


def test_a_folder_that_could_not_be_filled_is_removed(tmp_path):
    with pytest.raises(UserError, match="cannot write .*data: "), files.filling(tmp_path / "data") as folder:
        (folder / "one").write_text("1")
        (folder / "missing" / "two").write_text("2")
    assert list(tmp_path.iterdir()) == []
