"""Files with the rows of a replay. Checkpoints share them, so each checkpoint writes only the new rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlcls.files import Seal, pack, sync, unpack
from rlcls.training.loop import Rows

FOLDER = "replay"
_BYTES = 1 << 28  # bytes of a segment before compression; writing one takes as much memory
_NAME = re.compile(r"rows-(\d+)-(\d+)\.npz\.zst")


class Segment(NamedTuple):
    """A file of rows.

    Attributes:
      first: number of its first row.
      last: one more than the number of its last row.
      path: the file.
      seal: its size and SHA-256.
    """

    first: int
    last: int
    path: Path
    seal: Seal

    @classmethod
    def at(cls, path: Path, seal: Seal) -> Segment:
        """The segment in a file whose name contains `first` and `last`.

        Raises:
          ValueError: the name is not that of a segment.
        """
        match = _NAME.fullmatch(path.name)
        if not match:
            raise ValueError(f"{path} is not a replay segment")
        return cls(int(match[1]), int(match[2]), path, seal)


def folder(run_dir: Path, host: int, hosts: int) -> Path:
    """The folder of a host's segments. Each number of hosts has its own folders, so no file is written twice."""
    return run_dir / FOLDER / f"{host}-of-{hosts}" if hosts > 1 else run_dir / FOLDER


def write(folder: Path, rows: Rows, segments: list[Segment]) -> list[Segment]:
    """Writes the rows that are in no segment yet, and reads the new files back.

    Args:
      folder: the folder of the files.
      rows: the rows to save.
      segments: the segments of the previous checkpoint.

    Returns:
      Segments with all of `rows`, oldest first. Segments whose rows are all gone are left out.

    Raises:
      OSError, NotAsWritten: a file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    current = [segment for segment in segments if rows.first < segment.last <= rows.last]
    first = max([rows.first, *(segment.last for segment in current)])
    step = max(1, _BYTES // rows.row_bytes)
    for start in range(first, rows.last, step):
        end = min(start + step, rows.last)
        path = folder / f"rows-{start:012d}-{end:012d}.npz.zst"
        partial = path.with_name(path.name + ".partial")
        seal = pack(partial, rows.read(start, end))
        sync(partial)
        partial.rename(path)
        current.append(Segment(start, end, path, seal))
    return current


def read(segments: list[Segment], rows: Rows) -> None:
    """Restores `rows` from all segments, oldest first."""
    for segment in segments:
        rows.write(segment.first, unpack(segment.path))


def read_share(hosts: Sequence[list[Segment]], rows: Rows, host: int) -> None:
    """Puts the share of one host back into its `rows`, from the segments of another number of hosts.

    Args:
      hosts: the segments of each host that wrote them, oldest first. All hosts have the same rows of different streams.
      rows: the rows of `host`. Streams are numbered over all hosts.
      host: the number of the host that reads.
    """
    own = slice(host * rows.num_streams, (host + 1) * rows.num_streams)
    for parts in zip(*hosts, strict=True):
        columns = [unpack(segment.path) for segment in parts]
        rows.write(
            parts[0].first,
            {name: np.concatenate([each[name] for each in columns], axis=1)[:, own] for name in columns[0]},
        )


def prune(run_dir: Path, named: set[str]) -> None:
    """Removes the segments whose paths in the run folder are not `named`. Other files stay."""
    for path in (run_dir / FOLDER).rglob("rows-*"):
        ours = _NAME.fullmatch(path.name.removesuffix(".partial")) and path.is_file()
        if ours and str(path.relative_to(run_dir)) not in named:
            path.unlink(missing_ok=True)
