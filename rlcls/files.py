"""Atomic writes of files and folders, and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rlcls._errors import UserError

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""Exceptions that reading a damaged file can raise."""


class NotAsWritten(ValueError):
    """The contents of a file differ from what was written."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Replaces an OSError, such as for a full disk, by an error in one line about `path`.

    Raises:
      UserError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path; the file there is synced and then renamed to `path`.

    A process that is killed in between leaves the previous file unchanged, and a hidden file beside it.

    Raises:
      UserError: the file cannot be written.
    """
    # The suffix stays, because some writers choose the format by it. The token makes concurrent writers independent.
    partial = path.with_name(f".{path.stem}.partial-{secrets.token_hex(4)}{path.suffix}")
    try:
        with writing(path):
            yield partial
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def filling(path: Path) -> Iterator[Path]:
    """Yields a temporary folder; its files are synced, and then it is renamed to `path`.

    A process that is killed in between leaves a hidden folder beside it.

    Raises:
      UserError: `path` exists, or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists; name another folder")
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        with writing(path):
            partial.mkdir(parents=True)
            yield partial
            for entry in [*partial.rglob("*"), partial]:
                sync(entry)
            partial.rename(path)
            sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_foreign(name: str) -> bool:
    """Whether a file of this name belongs to an editor or a file system, such as .DS_Store or lost+found."""
    return (
        name.startswith((".", "#"))
        or name.endswith("~")
        or name in ("lost+found", "Thumbs.db", "desktop.ini")
    )


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Raises:
      UserError: it cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Calls fsync on a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pack(path: Path, arrays: dict[str, np.ndarray]) -> Seal:
    """Writes arrays as a compressed .npz, and reads the file back.

    Returns:
      The seal of the written bytes.

    Raises:
      NotAsWritten: the file has other contents.
    """
    import zstandard

    raw = io.BytesIO()
    np.savez(raw, **arrays)  # type: ignore[arg-type]
    # Level 1 is fast, because a run waits for its checkpoints, and still makes a game's frames 20 times smaller.
    return write_verified(path, zstandard.ZstdCompressor(level=1).compress(raw.getbuffer()))


def write_verified(path: Path, data: bytes) -> Seal:
    """Writes a file and reads it back.

    Returns:
      The seal of `data`.

    Raises:
      NotAsWritten: the file has other contents.
    """
    path.write_bytes(data)
    seal = Seal((len(data), hashlib.sha256(data).hexdigest()))
    seal.check(path, path.name)
    return seal


def unpack(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file of `pack`."""
    import zstandard

    raw = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        return dict(arrays)


class Seal(tuple[int, str]):
    """The size and SHA-256 of a file, which manifests list."""

    @classmethod
    def of(cls, path: Path) -> Seal:
        return cls((path.stat().st_size, _digest(path)))

    def check(self, path: Path, name: str) -> None:
        """Raises a NotAsWritten about `name` if the file at `path` has another size or SHA-256."""
        size, digest = self
        if not path.is_file():
            raise NotAsWritten(f"{name} is missing")
        if path.stat().st_size != size:
            raise NotAsWritten(f"{name} has {path.stat().st_size} bytes instead of {size}")
        if _digest(path) != digest:
            raise NotAsWritten(f"{name} does not match its checksum")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
