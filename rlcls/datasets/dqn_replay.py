"""The published DQN Replay files (Agarwal et al. 2020): the replay memory of DQN, logged whenever it was full.

    PATH/GAME/RUN/replay_logs/$store$_observation_ckpt.K.gz     uint8 [N, 84, 84], N is 1,000,000
    PATH/GAME/RUN/replay_logs/$store$_action_ckpt.K.gz          int32 [N]
    PATH/GAME/RUN/replay_logs/$store$_reward_ckpt.K.gz          float32 [N], clipped to [-1, 1]
    PATH/GAME/RUN/replay_logs/$store$_terminal_ckpt.K.gz        uint8 [N]
    PATH/GAME/RUN/replay_logs/add_count_ckpt.K.gz               an integer

Each file is a gzipped .npy. `add_count` modulo N is the next row that would have been written. Rows from there on are
older or were never written, so they are skipped: one row of a full checkpoint, and many rows of the last one of a run.
Three rows of zeros precede every episode. A checkpoint usually starts and ends within an episode.
"""

from __future__ import annotations

import collections
import functools
import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from rlcls._errors import UserError

from .atari_games import NUM_ACTIONS, game_folder
from .conversion import Conversion, Part, reading, sizes
from .rows import BEGINS, CONTINUES, CUT, Layout, Rows

_STORE = {"observation": "uint8", "action": "int32", "reward": "float32", "terminal": "uint8"}
_PADDING = 3  # rows of zeros before an episode, stack - 1
_BLOCK = 2048  # rows in memory at a time, 14 MB of frames
_BYTES = 1 << 20


def conversion(
    path: str | Path | None,
    game: str,
    runs: Sequence[int] | None = None,
    checkpoints: Sequence[int] | None = None,
    fraction: float = 1.0,
) -> Conversion:
    """The first `fraction` of the rows of each checkpoint.

    Args:
      path: the folder with the games.
      game: such as "Pong".
      runs: numbers of the runs; None means all.
      checkpoints: numbers of the checkpoints of each run; None means all.
      fraction: above 0, at most 1.

    Raises:
      ValueError: `fraction` is out of range.
      UserError: a file is missing or empty.
    """
    check_fraction(fraction)
    folder = game_folder(path, game)
    parts, files = [], []
    for run in runs or _numbers(folder, r"(\d+)", "run"):
        logs = folder / str(run) / "replay_logs"
        if not logs.is_dir():
            raise UserError(f"{logs} is missing")
        for number in checkpoints or _numbers(logs, r"\$store\$_observation_ckpt\.(\d+)\.gz", "checkpoint"):
            paths = {name: folder / file for name, file in checkpoint_files(run, number).items()}
            files += sizes(folder, list(paths.values()))
            name = f"{game}, run {run}, checkpoint {number}"
            parts.append(Part(name, functools.partial(_read, paths, number, fraction)))
    source = {"format": "DQN Replay", "game": game, "fraction": fraction, "files": files}
    layout = Layout(
        game=game, frame_shape=(84, 84), stack=4, num_actions=NUM_ACTIONS[game], rewards_clipped=True
    )
    return Conversion(folder, layout, source, parts)


def checkpoint_files(run: int, number: int) -> dict[str, str]:
    """The files of a checkpoint in a game's folder, by the names of the columns and "add_count"."""
    names = {name: f"$store$_{name}" for name in _STORE} | {"add_count": "add_count"}
    return {name: f"{run}/replay_logs/{file}_ckpt.{number}.gz" for name, file in names.items()}


def check_fraction(fraction: float) -> None:
    """Raises a ValueError if `fraction` is not above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, not {fraction}")


def _numbers(folder: Path, pattern: str, what: str) -> list[int]:
    matches = (re.fullmatch(pattern, entry.name) for entry in folder.iterdir())
    numbers = sorted(int(match[1]) for match in matches if match)
    if not numbers:
        raise UserError(f"{folder} has no {what}")
    return numbers


def _read(paths: dict[str, Path], number: int, fraction: float) -> Iterator[Rows]:
    columns = {name: _whole(paths[name], dtype) for name, dtype in _STORE.items() if name != "observation"}
    add_count, size = int(_whole(paths["add_count"], None)), len(columns["action"])
    for name, column in columns.items():
        if len(column) != size:
            raise UserError(f"{paths[name]} has {len(column):,} rows, but {paths['action']} has {size:,}")
    # In a run's last checkpoint `add_count` counts its own rows only. A checkpoint may be written one round late.
    if add_count < 1 or size <= add_count < number * size:
        raise UserError(f"{paths['add_count']} says {add_count:,}, which checkpoint {number} cannot have")
    written = add_count % size
    if not written:
        raise UserError(f"{paths['add_count']} says {add_count:,}, so no row of {size:,} is new")
    count = max(1, int(written * fraction))
    action, reward = columns["action"][:count], columns["reward"][:count]
    terminal = columns["terminal"][:count] != 0
    padding = np.zeros(count + _PADDING + 1, bool)
    for offset in range(1, _PADDING + 1):
        padding[np.flatnonzero(terminal) + offset] = True
    starts = np.full(count + _PADDING + 1, CONTINUES, np.uint8)
    starts[np.flatnonzero(terminal) + _PADDING + 1] = BEGINS
    first, blocks = 0, _blocks(paths["observation"], size, count)
    for frames in blocks:
        if first == 0:
            if not (frames[:_PADDING].any() or action[:_PADDING].any() or terminal[:_PADDING].any()):
                padding[:_PADDING], starts[_PADDING] = True, BEGINS
            else:
                starts[0] = CUT
        last = first + len(frames)
        rows = Rows(frames, action[first:last], reward[first:last], terminal[first:last], starts[first:last])
        zeros = padding[first:last]
        for column in rows[:4]:
            if column[zeros].any():
                row = first + int(np.flatnonzero(zeros)[0])
                collections.deque(
                    blocks, maxlen=0
                )  # reads to the checksum at the end of the file, whose error says more
                raise UserError(
                    f"{paths['observation']}: {_PADDING} rows of zeros must follow every terminal, "
                    f"but rows {row} to {last} have others"
                )
        yield Rows(*(column[~zeros] for column in rows))
        first = last


def _whole(path: Path, dtype: str | None) -> np.ndarray:
    """The array of a small file."""
    with reading(path), gzip.open(path) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError("the file continues after the array")
    if dtype is None:
        if array.ndim or array.dtype.kind not in "iu":
            raise UserError(f"{path} has {array.dtype} {list(array.shape)} instead of one integer")
    elif array.ndim != 1 or array.dtype != dtype:
        raise UserError(f"{path} has {array.dtype} {list(array.shape)} instead of {dtype} [rows]")
    return array


def _blocks(path: Path, size: int, count: int) -> Iterator[UInt8[np.ndarray, "rows 84 84"]]:
    """The first `count` frames. The file is read to its end, because the checksum is there."""
    with reading(path), gzip.open(path) as file:
        header: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, dtype = header[np.lib.format.read_magic(file)](file)
        if shape != (size, 84, 84) or fortran or dtype != np.uint8:
            raise ValueError(f"it has {dtype} {list(shape)} instead of uint8 {[size, 84, 84]}")
        for first in range(0, count, _BLOCK):
            rows = min(_BLOCK, count - first)
            data = file.read(rows * 84 * 84)
            if len(data) < rows * 84 * 84:
                raise EOFError
            yield np.frombuffer(data, np.uint8).reshape(rows, 84, 84)
        rest = (size - count) * 84 * 84
        while data := file.read(_BYTES):
            rest -= len(data)
        if rest:
            raise ValueError(f"the sizes in its header and of its contents differ by {abs(rest):,} bytes")
