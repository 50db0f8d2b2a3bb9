"""Converts published files to a recording, once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlcls._errors import UserError

from .recording import Recording, Writer
from .rows import Layout, Rows

CACHE = "rlcls-cache"
"""The folder beside published files with the recordings made from them."""


class Part(NamedTuple):
    """A part of a conversion. After a kill, a conversion repeats the part that was interrupted.

    Attributes:
      name: a readable name of the source.
      read: yields the rows in order.
    """

    name: str
    read: Callable[[], Iterator[Rows]]


class Conversion(NamedTuple):
    """The conversion of files to a recording.

    Attributes:
      folder: the folder of the files.
      layout: the layout of the recording.
      source: JSON values: the choice of data, and as "files" the names in `folder` and sizes of the files.
      parts: the parts, in this order.
    """

    folder: Path
    layout: Layout
    source: dict[str, Any]
    parts: Sequence[Part]

    @property
    def name(self) -> str:
        """The name of the recording, which depends on the choice of data and on the sizes of the files."""
        digest = hashlib.sha256(json.dumps([self.source, self.layout], default=vars, sort_keys=True).encode())
        return f"{self.layout.game.replace('/', '-')}-{digest.hexdigest()[:12]}"

    def write(self, folder: str | Path) -> Recording:
        """The recording in `folder`. It is written if it is missing, and continued if it is unfinished.

        Raises:
          UserError: a file is damaged, or the folder cannot be written.
        """
        with Writer(folder, self.layout, self.source) as writer:
            for number in range(
                len(self.parts) if writer.complete else writer.progress or 0, len(self.parts)
            ):
                part = self.parts[number]
                print(f"converting {part.name} ({number + 1} of {len(self.parts)})", file=sys.stderr)
                for rows in part.read():
                    try:
                        writer.append(rows)
                    except ValueError as error:
                        raise UserError(f"{part.name}: {error}") from error
                self._check_unchanged()
                writer.commit(number + 1)
            return writer.finish()

    def _check_unchanged(self) -> None:
        for name, size in self.source["files"]:
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(f"{path} changed while it was read; wait until it is complete")


def sizes(root: Path, paths: Sequence[Path]) -> list[list[Any]]:
    """[name, bytes] of each file, with names relative to `root`.

    Raises:
      UserError: a file is missing or empty.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if not path.stat().st_size:
            raise UserError(f"{path} is empty")
    return [[str(path.relative_to(root)), path.stat().st_size] for path in paths]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Replaces exceptions of reading a damaged file by an error in one line that names the file.

    Raises:
      UserError: the file is damaged.
    """
    try:
        yield
    except EOFError as error:
        raise UserError(f"{path} is truncated") from error
    except (
        OSError,
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        RuntimeError,
        MemoryError,
        OverflowError,
    ) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"{path} is damaged: {reason}") from error
