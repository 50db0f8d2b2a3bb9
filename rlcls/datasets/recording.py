"""Recordings: folders of memory-mapped columns, and a manifest with a checksum for every 256 rows.

manifest.json     layout, source, number of rows in each chunk, SHA-256 of each chunk of each column
frames.bin        the columns of `Rows`, each as raw little-endian numpy data without a header
actions.bin  rewards.bin  terminals.bin  starts.bin
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from rlcls._errors import UserError
from rlcls.files import write_text, writing
from rlcls.phases import phase

from .rows import Layout, Rows

MANIFEST = "manifest.json"
_FORMAT = "rlcls recording 2"
_READABLE = ("rlcls recording 1", _FORMAT)  # in the first, no row is marked as TRUNCATED
_CHUNK = 256  # rows per checksum: 1.8 MB of Atari frames, which take about a millisecond to hash


@dataclasses.dataclass
class Manifest:
    """The contents of manifest.json.

    Attributes:
      layout: the layout of the rows.
      source: the origin of the rows, as JSON values.
      complete: whether the writer has finished.
      progress: the position of the writer in its source, as JSON values.
      chunks: the number of rows in each chunk.
      sha256: for each column, the checksum of each chunk.
    """

    layout: Layout
    source: dict[str, Any]
    complete: bool = False
    progress: Any = None
    chunks: list[int] = dataclasses.field(default_factory=list)
    sha256: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.layout.columns:
            self.sha256.setdefault(name, [])

    @property
    def rows(self) -> int:
        """The number of rows in all chunks."""
        return sum(self.chunks)

    @property
    def borders(self) -> list[int]:
        """The first row of each chunk, then the number of rows."""
        return [0, *itertools.accumulate(self.chunks)]

    def bytes(self, name: str) -> int:
        """The size in bytes of the file of a column."""
        dtype, shape = self.layout.columns[name]
        return self.rows * dtype.itemsize * int(np.prod(shape, dtype=np.int64))

    @property
    def seal(self) -> str:
        """SHA-256 of everything else in the manifest."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Writes the file atomically."""
        values = {"format": _FORMAT, **dataclasses.asdict(self), "seal": self.seal}
        write_text(folder / MANIFEST, json.dumps(values))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a recording.

        Raises:
          UserError: the manifest is missing, damaged or of another version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{folder} is not a recording: it has no {MANIFEST}")
        try:
            values = json.loads(path.read_bytes())
            version, seal = values.pop("format"), values.pop("seal")
            if version not in _READABLE:
                raise UserError(
                    f"{path} has the format {version!r}; this version reads {' and '.join(map(repr, _READABLE))}"
                )
            manifest = cls(**{**values, "layout": Layout.of_json(values["layout"])})
            damaged = manifest.seal != seal
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged = True
        if damaged:
            raise UserError(f"{path} is damaged: its contents do not match their checksum")
        return manifest


def verify(path: str | Path) -> list[str]:
    """One line for each damaged chunk of a recording, and for each file with a wrong size.

    Raises:
      UserError: the manifest is missing or damaged, or the recording is unfinished.
    """
    folder = Path(path)
    manifest = _finished(folder)
    lines = []
    for name in manifest.layout.columns:
        try:
            column = _mapped(folder, manifest, name)
        except UserError as error:
            lines.append(str(error))
        else:
            lines += _damage(folder, manifest, name, column)
    return lines


class Recording:
    """A finished recording, read only.

    `columns` are memory maps of the whole files. Opening checks the sizes of all files and the checksums of all columns
    except the frames. `check` compares the frames of a chunk with their checksum before their first use.

    Args:
      path: the folder.

    Attributes:
      manifest: layout, source and checksums.
      columns: the memory maps.

    Raises:
      UserError: the recording is missing, unfinished or damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = _finished(self.path)
        layout = self.manifest.layout
        self.columns = Rows(*(_mapped(self.path, self.manifest, name) for name in layout.columns))
        self._borders = np.array(self.manifest.borders)
        self._checked = np.zeros(len(self.manifest.chunks), bool)
        self._all_checked = False
        for name, column in zip(layout.columns, self.columns, strict=True):
            for line in _damage(self.path, self.manifest, name, column) if name != "frames" else ():
                raise UserError(line)
        if self.columns.num_rows and not self.columns.part(0, 1).begins[0]:
            raise UserError(f"{self.path}: the first row continues an episode that is missing")

    @property
    def identity(self) -> str:
        """A hash of all contents, 64 hexadecimal digits."""
        return self.manifest.seal

    def check(self, rows: Int[np.ndarray, "..."]) -> None:
        """Compares the chunks with the frames of `rows` with their checksums, each chunk only once.

        Raises:
          UserError: a chunk is damaged.
        """
        if self._all_checked:
            return
        chunks = np.searchsorted(self._borders, rows.reshape(-1), side="right") - 1
        for chunk in np.unique(chunks[~self._checked[chunks]]):
            first, last = (int(row) for row in self._borders[chunk : chunk + 2])
            if _digest(self.columns.frames[first:last]) != self.manifest.sha256["frames"][chunk]:
                raise UserError(_damaged(self.path, "frames", first, last))
            self._checked[chunk] = True
            self._all_checked = bool(self._checked.all())


class Writer:
    """Writes a recording, and continues one that a killed writer left unfinished.

    Rows are saved when `commit` returns. Opening an unfinished recording removes the rows after its last commit;
    `progress` is then the position in the source at which to continue. Only one process writes at a time; others wait.

    Args:
      path: the folder, which is made if needed.
      layout: the layout of the rows.
      source: the origin of the rows, as JSON values.

    Attributes:
      manifest: the state at the last commit.

    Raises:
      UserError: the folder has a recording with another source or layout, is damaged, or cannot be written.
    """

    def __init__(self, path: str | Path, layout: Layout, source: dict[str, Any]):
        self.path = Path(path)
        self._pending = Rows(*(np.zeros((0, *shape), dtype) for dtype, shape in layout.columns.values()))
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            _wait_for(self._lock, self.path)
        try:
            self.manifest = self._begin(layout, source)
            self._files = (
                {} if self.manifest.complete else {name: self._open(name) for name in layout.columns}
            )
        except BaseException:
            os.close(self._lock)
            raise

    def _begin(self, layout: Layout, source: dict[str, Any]) -> Manifest:
        if not (self.path / MANIFEST).exists():
            foreign = sorted(self.path.glob("[!.]*"))
            if foreign:
                raise UserError(f"{self.path} has other files, such as {foreign[0].name}; name a new folder")
            manifest = Manifest(layout, source)
            manifest.write(
                self.path
            )  # before the columns, because files without a manifest count as other files
            return manifest
        manifest = Manifest.read(self.path)
        if (manifest.layout, manifest.source) != (layout, json.loads(json.dumps(source))):
            raise UserError(f"{self.path} has a recording with another source or layout; name another folder")
        return manifest

    def _open(self, name: str) -> Any:
        path, size = self.path / f"{name}.bin", self.manifest.bytes(name)
        path.touch()
        if path.stat().st_size < size:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, but {size:,} according to the manifest"
            )
        file = path.open("r+b")
        file.truncate(size)
        file.seek(size)
        return file

    @property
    def progress(self) -> Any:
        """The argument of the last `commit`; None before the first."""
        return self.manifest.progress

    @property
    def complete(self) -> bool:
        """Whether the recording is finished."""
        return self.manifest.complete

    def append(self, rows: Rows) -> None:
        """Appends rows. The first one continues the last appended row, unless its `starts` says otherwise.

        Raises:
          ValueError: the rows do not have this layout.
          UserError: the disk is full.
        """
        self.manifest.layout.check(rows)
        if not (self.manifest.rows or self._pending.num_rows) and rows.num_rows and not rows.begins[0]:
            raise ValueError("the first row of a recording must start an episode")
        rows = Rows(*(np.concatenate(columns) for columns in zip(self._pending, rows, strict=True)))
        whole = rows.num_rows // _CHUNK * _CHUNK
        for first in range(0, whole, _CHUNK):
            self._write(rows.part(first, first + _CHUNK))
        self._pending = rows.part(whole, rows.num_rows)

    def commit(self, progress: Any = None) -> None:
        """Saves the rows appended so far.

        Args:
          progress: the position of the writer in its source, as JSON values.

        Raises:
          UserError: the disk is full.
        """
        if self._pending.num_rows:
            self._write(self._pending)
            self._pending = self._pending.part(0, 0)
        with writing(self.path):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        self.manifest.progress = progress
        self.manifest.write(self.path)

    def finish(self) -> Recording:
        """Commits, marks the recording as complete, and opens it."""
        if not self.complete:
            progress = self.progress
            self.manifest.complete = True
            self.commit(progress)
        return Recording(self.path)

    def _write(self, chunk: Rows) -> None:
        with writing(self.path):
            for (name, file), column in zip(self._files.items(), chunk, strict=True):
                file.write(np.ascontiguousarray(column).tobytes())
                self.manifest.sha256[name].append(_digest(column))
        self.manifest.chunks.append(chunk.num_rows)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for file in self._files.values():
                with contextlib.suppress(OSError):  # a full disk; only committed rows count
                    file.close()
        finally:
            os.close(self._lock)


def _wait_for(lock: int, folder: Path) -> None:
    """Locks a folder until the process ends. Shows a message while it waits for another process."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with phase(f"waiting for another process that writes {folder}"):
            fcntl.flock(lock, fcntl.LOCK_EX)


def _finished(folder: Path) -> Manifest:
    manifest = Manifest.read(folder)
    if not manifest.complete:
        raise UserError(
            f"{folder} is unfinished ({manifest.rows:,} rows); the command that made it can continue it"
        )
    return manifest


def _mapped(folder: Path, manifest: Manifest, name: str) -> np.ndarray:
    """A column as a memory map of its file."""
    dtype, shape = manifest.layout.columns[name]
    path, size = folder / f"{name}.bin", manifest.bytes(name)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    if path.stat().st_size != size:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes instead of {size:,}")
    if not size:
        return np.zeros((manifest.rows, *shape), dtype)
    return np.memmap(path, dtype, "r", shape=(manifest.rows, *shape))


def _damage(folder: Path, manifest: Manifest, name: str, column: np.ndarray) -> Iterator[str]:
    """One line for each damaged chunk of a column."""
    borders = itertools.pairwise(manifest.borders)
    for (first, last), digest in zip(borders, manifest.sha256[name], strict=True):
        if _digest(column[first:last]) != digest:
            yield _damaged(folder, name, first, last)


def _damaged(folder: Path, name: str, first: int, last: int) -> str:
    return f"{folder / name}.bin is damaged: rows {first} to {last - 1} do not match their checksum"


def _digest(column: Shaped[np.ndarray, "..."]) -> str:
    return hashlib.sha256(np.ascontiguousarray(column).data.cast("B")).hexdigest()
