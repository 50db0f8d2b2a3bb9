"""A file is whole or absent, also when two processes write it."""

import stat

from rlcls import files


def test_two_writers_of_one_file_do_not_share_its_parts(tmp_path):
    path = tmp_path / "picture.png"
    with files.replacing(path) as first, files.replacing(path) as second:
        assert first != second and first.suffix == second.suffix == ".png"
        assert files.is_foreign(first.name)  # the one that a kill leaves blocks nothing
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_replaces_another_can_be_read_by_whom_the_umask_allows(tmp_path):
    (tmp_path / "plain").write_text("")
    files.write_text(tmp_path / "ours", "text")
    plain, ours = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours"))
    assert ours == plain
