"""Files that are whole or absent, and the checksums that show it."""

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
"""Reading a damaged file may raise these."""


class NotAsWritten(ValueError):
    """A file does not hold what was written to it."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError, such as that of a full disk, into one line about `path`.

    Raises:
      UserError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path of its own to write to; the file gets its name once it is whole and on the disk.

    A process that is killed meanwhile leaves the file before untouched, and a hidden file beside it.

    Raises:
      UserError: the file cannot be written.
    """
    # Some writers choose a format by the suffix. Two processes may write the same file at once, so the name is unique.
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
    """Yields a new folder to fill; it gets the name `path` once all its files are whole and on the disk.

    A process that is killed meanwhile leaves a hidden folder beside it.

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
    """Whether an entry of this name belongs to an editor or a file system, such as .DS_Store or lost+found."""
    return (
        name.startswith((".", "#"))
        or name.endswith("~")
        or name in ("lost+found", "Thumbs.db", "desktop.ini")
    )


def write_text(path: Path, text: str) -> None:
    """Writes a text file that is whole or absent.

    Raises:
      UserError: it cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Brings a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pack(path: Path, arrays: dict[str, np.ndarray]) -> Seal:
    """Writes arrays as a compressed .npz, and reads the file back.

    Returns:
      The seal of the bytes that were to be written.

    Raises:
      NotAsWritten: the file holds other bytes.
    """
    import zstandard

    raw = io.BytesIO()
    np.savez(raw, **arrays)  # type: ignore[arg-type]
    # Level 1: a game's frames shrink twentyfold even so, and a checkpoint should not hold up the run.
    return write_verified(path, zstandard.ZstdCompressor(level=1).compress(raw.getbuffer()))


def write_verified(path: Path, data: bytes) -> Seal:
    """Writes a file and reads it back.

    Returns:
      The seal of `data`.

    Raises:
      NotAsWritten: the file holds other bytes.
    """
    path.write_bytes(data)
    seal = Seal((len(data), hashlib.sha256(data).hexdigest()))
    seal.check(path, path.name)
    return seal


def unpack(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `pack` wrote."""
    import zstandard

    raw = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        return dict(arrays)


class Seal(tuple[int, str]):
    """Size and SHA-256 of a file, as a manifest lists them."""

    @classmethod
    def of(cls, path: Path) -> Seal:
        return cls((path.stat().st_size, _digest(path)))

    def check(self, path: Path, name: str) -> None:
        """Raises a NotAsWritten about `name` if the file at `path` is not the one that was sealed."""
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
