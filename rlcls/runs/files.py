"""Files that are whole or absent, and the checksums that tell."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rlcls._errors import UserError

DAMAGED = (OSError, ValueError, KeyError, TypeError)
"""Reading a damaged file may raise these."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to; the file gets its name once it is whole and on the disk.

    A process that is killed meanwhile leaves the file before untouched, and a hidden file beside it.

    Raises:
      UserError: the file cannot be written.
    """
    # The suffix stays, since some writers choose a format by it.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


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


def pack(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as a compressed .npz."""
    import zstandard

    raw = io.BytesIO()
    np.savez(raw, **arrays)  # type: ignore[arg-type]
    # Level 1: a game's frames shrink twentyfold even so, and a checkpoint should not hold up the run.
    path.write_bytes(zstandard.ZstdCompressor(level=1).compress(raw.getbuffer()))


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
        """Raises a ValueError about `name` if the file at `path` is not the one that was sealed."""
        size, digest = self
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes instead of {size}")
        if _digest(path) != digest:
            raise ValueError(f"{name} does not match its checksum")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
