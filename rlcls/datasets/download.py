"""Downloads files over HTTP. Interrupted downloads continue, and a file gets its name after it is checked."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from rlcls._errors import UserError, one_line
from rlcls.files import sync, writing

_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each retry after failures without progress
_TIMEOUT = 60.0  # seconds without any data
_BYTES = 1 << 20  # bytes read at a time
# Google's storage answers 403 for a missing file in a bucket that cannot be listed.
_ABSENT = (403, 404, 410)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class Remote(NamedTuple):
    """Size and checksums of a file, from the headers of a server.

    Attributes:
      size: bytes; None if the server does not send it.
      md5: 16 bytes, from the header x-goog-hash; None if the server does not send it.
      crc32c: 4 bytes, from the same header; None if the server does not send it.
    """

    size: int | None = None
    md5: bytes | None = None
    crc32c: bytes | None = None


class _Unusable(Exception):
    """A mirror cannot provide a file; the message says why."""


def ask(name: str, mirrors: Sequence[str]) -> Remote | None:
    """Asks mirrors in turn for the size and checksums of a file. Returns None if no mirror has the file.

    Args:
      name: the file, relative to each mirror.
      mirrors: URLs of folders, tried in turn.

    Raises:
      UserError: no mirror has the file, and at least one did not answer.
    """
    problems = []
    for mirror in mirrors:
        try:
            remote = _ask(_url(mirror, name))
        except _Unusable as error:
            problems.append(f"{_url(mirror, name)}: {error}")
        else:
            if remote is not None:
                return remote
    if problems:
        raise UserError(f"cannot ask for {name} ({'; '.join(problems)})")
    return None


def download(
    name: str,
    target: Path,
    mirrors: Sequence[str],
    sha256: str | None = None,
    tick: Callable[[int], object] = lambda size: None,
) -> bool:
    """Downloads a file to `target`. Until it is complete and checked, its name ends in .part.

    An existing .part is continued with a range request. After a failure the mirror is tried again, up to five times
    without progress and with growing pauses. Then the next mirror is tried. A file with a wrong length or checksum is
    removed.

    Args:
      name: the file, relative to each mirror.
      target: the file to write; its folder is made if needed.
      mirrors: URLs of folders, tried in turn.
      sha256: the expected checksum in hexadecimal; None compares the server's checksums.
      tick: called with the number of bytes so far.

    Returns:
      Whether a checksum was compared, and not only the length.

    Raises:
      UserError: no mirror provides the file, it cannot be written, or another process downloads it.
    """
    part = target.with_name(f"{target.name}.part")
    problems = []
    with _opened(part) as file:
        for mirror in mirrors:
            try:
                was_checked = _whole(_url(mirror, name), file, sha256, tick)
            except _Unusable as error:
                problems.append(f"{_url(mirror, name)}: {error}")
                continue
            with writing(target):
                file.flush()
                os.fsync(file.fileno())
                part.rename(target)
                sync(target.parent)
            return was_checked
        if not _size(file):
            part.unlink()
    raise UserError(f"cannot fetch {name} ({'; '.join(problems)})")


@contextlib.contextmanager
def _opened(part: Path) -> Iterator[IO[bytes]]:
    """The file to which this process downloads, locked against other processes."""
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
            is_there = os.fstat(file.fileno()).st_ino == part.stat().st_ino
        except OSError:
            is_there = False
        if not is_there:  # another process has locked it, or has renamed it since it was opened
            raise UserError(f"another process downloads {part}")
        yield file


def _whole(url: str, file: IO[bytes], sha256: str | None, tick: Callable[[int], object]) -> bool:
    """Downloads the file completely, and checks it; see `download`."""
    while True:
        was_begun = _size(file) > 0
        remote = _transfer(url, file, tick)
        problem, was_checked = _compare(file, remote, sha256)
        if problem is None:
            return was_checked
        file.truncate(0)
        tick(0)
        if not was_begun:
            raise _Unusable(problem)
        # The .part was from another mirror or of an older version, so the file is downloaded from its first byte.


def _transfer(url: str, file: IO[bytes], tick: Callable[[int], object]) -> Remote:
    """Appends the missing bytes, with retries. Returns the size and checksums from the server.

    Raises:
      _Unusable: the server does not have the file, or keeps failing.
    """
    remote = _ask(url)
    if remote is None:
        raise _Unusable("the server does not have it")
    failures = 0
    while True:
        before = _size(file)
        if remote.size is not None and before > remote.size:
            file.truncate(0)
            before = 0
        if before == remote.size:
            return remote
        try:
            size = _append(url, file, before, tick)
            if size is None or _size(file) == size:
                return remote
            problem = f"the connection ended after {_size(file):,} of {size:,} bytes"
        except (OSError, http.client.HTTPException) as error:
            problem = _reason(error)
        failures = 0 if _size(file) > before else failures + 1
        if failures > len(_WAITS):
            raise _Unusable(problem)
        time.sleep(_WAITS[max(failures - 1, 0)])


def _append(url: str, file: IO[bytes], have: int, tick: Callable[[int], object]) -> int | None:
    """Requests the bytes from `have` on and appends them. Returns the size of the whole file, or None if unknown.

    Raises:
      _Unusable: the server refuses permanently.
      OSError, HTTPException: the request failed.
    """
    try:
        response = _request("GET", url, {"Range": f"bytes={have}-"} if have else {})
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the file is complete, or is another file
            size = _total(error.headers)
            if size != have:
                file.truncate(0)
            return size
        raise
    with response:
        size = _total(response.headers) if response.status == 206 else _length(response.headers)
        if response.status != 206 or _first(response.headers) != have:
            file.truncate(0)  # the server ignores ranges, or sends a different range
            if response.status == 206:
                return size
        while data := response.read(_BYTES):
            with writing(Path(file.name)):
                file.write(data)
                file.flush()
            tick(_size(file))
    return size


def _ask(url: str) -> Remote | None:
    """Asks a server for the size and checksums of a file. Returns None if it does not have the file.

    Raises:
      _Unusable: the server does not answer, or refuses.
    """
    for wait in (*_WAITS, None):
        try:
            with _request("HEAD", url, {}) as response:
                hashes = ",".join(response.headers.get_all("x-goog-hash", []))
                values = dict(re.findall(r"(md5|crc32c)=([A-Za-z0-9+/]+=*)", hashes))
                digests = {name: base64.b64decode(value) for name, value in values.items()}
                return Remote(_length(response.headers), **digests)
        except urllib.error.HTTPError as error:
            if error.code in _ABSENT:
                return None
            if error.code in (405, 501):  # the server does not support HEAD
                return Remote()
            problem = _reason(error)
        except (OSError, http.client.HTTPException) as error:
            problem = _reason(error)
        if wait is not None:
            time.sleep(wait)
    raise _Unusable(problem)


def _request(method: str, url: str, headers: dict[str, str]) -> Any:
    """The response of the server.

    Raises:
      _Unusable: the server refuses permanently.
      OSError, HTTPException: the request failed.
    """
    # For a client that does not accept gzip, Google's storage decompresses files, whose length is then unknown.
    headers = {"User-Agent": "rlcls", "Accept-Encoding": "gzip", **headers}
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers, method=method), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in (*_ABSENT, *_TRANSIENT, 405, 416, 501):
            raise _Unusable(_reason(error)) from None
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, (socket.gaierror, ssl.SSLCertVerificationError)):
            raise _Unusable(_reason(error)) from None
        raise
    except ValueError as error:  # not a URL
        raise _Unusable(one_line(error)) from None


def _compare(file: IO[bytes], remote: Remote, sha256: str | None) -> tuple[str | None, bool]:
    """Compares a file with its size and its checksum.

    Returns:
      A phrase about the difference, or None; and whether a checksum was compared.
    """
    size = _size(file)
    checksum: Any
    if remote.size is not None and size != remote.size:
        return f"it has {size:,} bytes instead of {remote.size:,}", False
    if sha256 is not None:
        kind, checksum, expected = "SHA-256", hashlib.sha256(), sha256.lower()
    elif remote.md5 is not None:
        kind, checksum, expected = "MD5", hashlib.md5(usedforsecurity=False), remote.md5.hex()
    elif remote.crc32c is not None and (crc32c := _crc32c()) is not None:
        kind, checksum, expected = "CRC-32C", crc32c, remote.crc32c.hex()
    else:
        return None, False
    file.seek(0)
    while data := file.read(_BYTES):
        checksum.update(data)
    actual = checksum.digest().hex()
    return (None if actual == expected else f"its {kind} is {actual} instead of {expected}"), True


def _crc32c() -> Any:
    """An empty checksum; None without google_crc32c, because pure Python is too slow."""
    try:
        import google_crc32c
    except ImportError:
        return None
    return google_crc32c.Checksum()


def _url(mirror: str, name: str) -> str:
    return f"{mirror.rstrip('/')}/{urllib.parse.quote(name)}"


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _length(headers: Any) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _total(headers: Any) -> int | None:
    """The size of the whole file in the response to a range request."""
    match = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _first(headers: Any) -> int | None:
    """The position of the first byte in the response to a range request."""
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return one_line(reason) if isinstance(reason, BaseException) else str(reason)
