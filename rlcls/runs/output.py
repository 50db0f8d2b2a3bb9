"""Lets a command continue after the reader of its output has ended."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from .signals import discard


@contextlib.contextmanager
def unread_is_dropped() -> Iterator[None]:
    """Makes the standard streams drop output that cannot be written, instead of raising an exception.

    The reader of a pipe may have ended, as `head` does, or a disk may be full. A note on stderr says that stdout is
    dropped.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, _Dropping(sys.stdout, is_output=True))
    sys.stderr = cast(TextIO, _Dropping(sys.stderr, is_output=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Dropping:
    """A wrapper of a text stream that drops all output after the first OSError."""

    def __init__(self, stream: Any, is_output: bool):
        self._stream, self._is_output = stream, is_output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        discard(self._stream.fileno())
        if self._is_output:
            print(f"note: the output is dropped from now on ({error.strerror})", file=sys.stderr)
