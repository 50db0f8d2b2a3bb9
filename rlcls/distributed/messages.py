"""Messages between two processes over a socket: the length of a JSON text, then the text."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from typing import Any

_LENGTH = struct.Struct("!I")
_MOST = 1 << 30  # bytes of the longest message


class Closed(Exception):
    """The other process has closed the connection, or sends something other than messages."""


class Link:
    """A connection to another process.

    Args:
      connection: the connected socket.

    Attributes:
      heard: the time of the last bytes received, by `time.monotonic`.
    """

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._sending = connection, threading.Lock()
        self.heard = time.monotonic()

    def send(self, kind: str, **values: Any) -> None:
        """Sends a message. Several threads may call it at once.

        Raises:
          Closed: the connection is closed.
        """
        data = json.dumps({"kind": kind, **values}).encode()
        try:
            with self._sending:
                self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise Closed from error

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """The next message.

        Args:
          seconds: how long to wait for it; None waits for ever.

        Raises:
          Closed: no message came, or something other than a message.
        """
        try:
            self._socket.settimeout(seconds)
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
            if length > _MOST:
                raise Closed
            message = json.loads(self._read(length))
        except (OSError, ValueError) as error:
            raise Closed from error
        if not isinstance(message, dict) or "kind" not in message:
            raise Closed
        return message

    def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self._socket.recv(min(1 << 20, length - len(data)))
            if not part:
                raise Closed
            data += part
            self.heard = time.monotonic()
        return bytes(data)

    def close(self) -> None:
        """Closes the connection. A `receive` in another thread then raises `Closed`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
