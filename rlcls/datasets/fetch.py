"""Downloads published files to the folders that `data=dqn_replay` and `data=rl_unplugged` read."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlcls._errors import UserError, nearest, one_line
from rlcls.files import Seal

from . import dqn_replay, rl_unplugged
from .atari_games import NUM_ACTIONS
from .download import ask, download


class Published(NamedTuple):
    """The place of the files of one format.

    Attributes:
      root: the URL of the folder with the games.
      files: (run, checkpoint) -> the names of the checkpoint's files in a game's folder.
    """

    root: str
    files: Callable[[int, int], list[str]]


PUBLISHED = {
    "dqn_replay": Published(
        "https://storage.googleapis.com/atari-replay-datasets/dqn",
        lambda run, checkpoint: list(dqn_replay.checkpoint_files(run, checkpoint).values()),
    ),
    "rl_unplugged": Published(
        "https://storage.googleapis.com/rl_unplugged/atari_episodes_ordered",
        lambda run, checkpoint: [rl_unplugged.checkpoint_file(run, checkpoint)],
    ),
}
"""The formats that can be fetched."""


class Wanted(NamedTuple):
    """A file to download.

    Attributes:
      name: the path in the folder with the games, both locally and on the server.
      size: bytes; None if the server does not send it.
    """

    name: str
    size: int | None


def wanted(
    form: str,
    games: Sequence[str],
    runs: Sequence[int] | None,
    checkpoints: Sequence[int] | None,
    mirrors: Sequence[str],
    show: Callable[[Wanted], object] = lambda file: None,
) -> list[Wanted]:
    """The files of a choice of data, with the sizes from the server.

    Args:
      form: a name of `PUBLISHED`.
      games: such as ["Pong"].
      runs: numbers of the runs; None means 1, 2, ... until one is missing.
      checkpoints: numbers of the checkpoints of each run; None means 0, 1, ... until one is missing.
      mirrors: URLs of folders with the games, tried in turn.
      show: called with each file when its size is known.

    Raises:
      UserError: a game is unknown, a file is missing, or a server does not answer.
    """
    files: list[Wanted] = []
    for game in games:
        if game not in NUM_ACTIONS:
            raise UserError(f"unknown game {game!r}{nearest(game, NUM_ACTIONS, most=4)}")
        for run in itertools.count(1) if runs is None else runs:
            count = 0
            for checkpoint in itertools.count() if checkpoints is None else checkpoints:
                names = [f"{game}/{name}" for name in PUBLISHED[form].files(run, checkpoint)]
                if ask(names[0], mirrors) is None:
                    break
                for name in names:
                    if (remote := ask(name, mirrors)) is None:
                        raise UserError(f"{name} is not at {' or '.join(mirrors)}")
                    files.append(Wanted(name, remote.size))
                    show(files[-1])
                count += 1
            if count < (1 if checkpoints is None else len(checkpoints)):
                if runs is None and run > 1 and not count:
                    break  # the previous run was the last one
                raise UserError(f"{names[0]} is not at {' or '.join(mirrors)}")
    return files


def fetch(
    files: Sequence[Wanted],
    folder: Path,
    mirrors: Sequence[str],
    sha256: dict[str, str] | None = None,
    tick: Callable[[int], object] = lambda size: None,
) -> list[str]:
    """Downloads the missing files, and compares existing ones with `sha256`. `missing` has checked their sizes.

    Args:
      files: from `wanted`.
      folder: the folder with the games.
      mirrors: URLs of folders with the games, tried in turn.
      sha256: a checksum for each file, in hexadecimal.
      tick: called with the number of bytes of these files so far.

    Returns:
      The names of the downloaded files for which only the length was compared, because there was no checksum.

    Raises:
      UserError: a file cannot be fetched or written, or an existing one has another checksum.
    """
    unchecked, done = [], 0
    for file in files:
        target = folder / file.name
        digest = sha256[file.name] if sha256 else None
        if target.exists():
            if digest and (actual := Seal.of(target)[1]) != digest.lower():
                raise UserError(
                    f"{target} has the SHA-256 {actual} instead of {digest.lower()}; move it away"
                )
        else:
            if not download(file.name, target, mirrors, digest, _after(done, tick)):
                unchecked.append(file.name)
        done += target.stat().st_size
        tick(done)
    return unchecked


def _after(done: int, tick: Callable[[int], object]) -> Callable[[int], object]:
    """A tick for one file, which adds the bytes of the files before it."""
    return lambda size: tick(done + size)


def missing(files: Sequence[Wanted], folder: Path) -> int:
    """The number of bytes to download.

    Raises:
      UserError: the size of an existing file differs from that on the server, or the disk has too little space.
    """
    left = 0
    for file in files:
        target = folder / file.name
        part = target.with_name(f"{target.name}.part")
        if not target.exists():
            left += max(0, (file.size or 0) - (part.stat().st_size if part.exists() else 0))
        elif file.size is not None and target.stat().st_size != file.size:
            raise UserError(
                f"{target} has {target.stat().st_size:,} bytes, but {file.size:,} on the server; move it away"
            )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if left > free:
        raise UserError(f"{size_text(left)} are missing, but {existing} has only {size_text(free)} left")
    return left


def read_sha256(path: Path, files: Sequence[Wanted]) -> dict[str, str]:
    """The checksums in a list in the format of sha256sum.

    Raises:
      UserError: the list cannot be read, or lacks one of the files.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from error
    matches = [re.fullmatch(r"([0-9a-fA-F]{64})[ \t]+\*?(?:\./)?(.+)", line) for line in lines]
    sums = {match[2]: match[1] for match in matches if match}
    for file in files:
        if file.name not in sums:
            raise UserError(f"{path} has no SHA-256 of {file.name}")
    return sums


def size_text(size: int) -> str:
    """A readable size.

    >>> size_text(1_234_567)
    '1.2 MB'
    """
    for unit, least in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= least:
            return f"{size / least:,.1f} {unit}"
    return f"{size} B"
