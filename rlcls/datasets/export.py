"""Writes recordings in the published forms: Minari's HDF5, and the files of DQN Replay."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from rlcls._errors import UserError, install
from rlcls.files import filling

from . import minari
from .atari_games import NUM_ACTIONS
from .recording import Recording
from .rows import BEGINS, CUT, Layout, Rows

Tick = Callable[[int], object]
"""Called with the rows that have been written."""

_BLOCK = 2048  # rows in memory at once, 14 MB of frames
_CHECKPOINT = 999_999  # rows of a checkpoint, one less than DQN Replay's files hold
_PADDING = 3  # rows of zeros before an episode in DQN Replay
_MINARI = "0.5.3"  # the version of Minari's layout


def to_minari(recording: Recording, path: Path, tick: Tick = lambda rows: None) -> list[str]:
    """Writes a Minari data set of HDF5 files, without JPEG, in the new folder `path`/data.

    An episode has one observation more than actions. Its final observation is that of the recording, whose action and
    reward are left out; an episode whose last row is terminal has none, and its last observation is repeated. Episodes
    of one row that is not terminal are left out, since no transition starts in them.

    Args:
      recording: what is written.
      path: the folder of the data set; by Minari's custom its name ends in -v0.
      tick: shows progress.

    Returns:
      A line on everything that the form does not hold.

    Raises:
      UserError: the form would not give back these observations or actions, or the folder exists.
    """
    h5py = import_h5py()
    layout, columns = recording.manifest.layout, recording.columns
    metadata = _metadata(layout, path, recording)
    numbers = itertools.count()
    steps, repeated, unused, cut = 0, 0, 0, 0
    with filling(path / "data") as folder:
        with h5py.File(folder / "main_data.hdf5", "w") as file:
            for first, last in _episodes(columns):
                has_final = not columns.terminals[last - 1]
                length = last - first - has_final
                if not length:
                    unused += 1
                    continue
                group = file.create_group(f"episode_{(number := next(numbers))}")
                group.attrs.update({"id": number, "total_steps": length})
                _write_observations(group, recording, first, last, repeat=not has_final)
                stop = first + length
                terminations = np.array(columns.terminals[first:stop])
                truncations = np.zeros(length, bool)
                truncations[-1] = not terminations[-1]
                action_dtype = np.int64 if layout.num_actions is not None else np.float32
                group["actions"] = columns.actions[first:stop].astype(action_dtype)
                group["rewards"] = columns.rewards[first:stop].astype(np.float64)
                group["terminations"], group["truncations"] = terminations, truncations
                steps += length
                repeated += not has_final
                cut += columns.starts[first] == CUT
                tick(last)
            total = next(numbers)
        metadata |= {"total_episodes": total, "total_steps": steps}
        (folder / "metadata.json").write_text(json.dumps(metadata))
    notes = {
        f"episodes that were under way at their first row, and begin there: {cut}": cut,
        f"episodes without a final observation, whose last one is repeated: {repeated}": repeated,
        f"episodes of one row, in which no transition starts, that are left out: {unused}": unused,
        "rewards were clipped when they were recorded, which is not kept": layout.rewards_clipped,
    }
    return [line for line, holds in notes.items() if holds]


def import_h5py() -> Any:
    """The module h5py.

    Raises:
      UserError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"HDF5 files need h5py: {install('data')} ({error})") from None
    return h5py


def to_dqn_replay(recording: Recording, path: Path, tick: Tick = lambda rows: None) -> list[str]:
    """Writes the files of DQN Replay in the new folder `path`/GAME/1.

    A checkpoint ends where the next row does not follow a terminal: an episode that a limit cut is bootstrapped from
    its last row there. Final observations of terminated episodes are left out, since the form has none.

    Args:
      recording: stacks of four 84 x 84 frames of an Atari game, played with the minimal action set.
      path: the folder that holds the games.
      tick: shows progress.

    Returns:
      A line on everything that the form does not hold.

    Raises:
      UserError: the recording is of something else, has lives whose loss is terminal, or the folder exists.
    """
    layout, columns = recording.manifest.layout, recording.columns
    form = Layout(
        game=layout.game, frame_shape=(84, 84), stack=4, num_actions=NUM_ACTIONS.get(layout.game, 0)
    )
    if (difference := _difference(form, layout)) is not None:
        raise UserError(f"DQN Replay cannot hold this recording of {layout.game}: {difference}")
    clipped = int((np.abs(columns.rewards) > 1).sum())
    with filling(path / layout.game / "1") as folder:
        logs = folder / "replay_logs"
        logs.mkdir()
        for number, rows in enumerate(_checkpoints(recording)):
            _write_checkpoint(logs, number, recording, rows, tick)
    return (
        [f"rewards beyond -1 or 1, which are clipped as in the published files: {clipped}"] if clipped else []
    )


EXPORTS = {"minari": to_minari, "dqn_replay": to_dqn_replay}
"""The forms in which a recording can be written."""


def _episodes(columns: Rows) -> Iterator[tuple[int, int]]:
    """The first row of each episode, and the one after its last."""
    begins = np.flatnonzero(columns.begins).tolist()
    return itertools.pairwise([*begins, columns.num_rows])


def _difference(form: Layout, layout: Layout) -> str | None:
    """The first field in which a form differs from a recording, in one phrase; None where none does."""
    for name, value in dataclasses.asdict(form).items():
        if name not in ("game", "rewards_clipped") and (own := getattr(layout, name)) != value:
            return f"{name} is {own}, and {value} in this form"
    return None


def _metadata(layout: Layout, path: Path, recording: Recording) -> dict[str, Any]:
    """The contents of Minari's metadata.json, but for the counts.

    Raises:
      UserError: a reader would take the observations or actions for others.
    """
    dtype = np.dtype(layout.frame_dtype)
    bounds = np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (bounds.min, bounds.max) if bounds else (-np.inf, np.inf)
    observation = {
        "type": "Box",
        "dtype": layout.frame_dtype,
        "shape": list(layout.frame_shape),
        "low": np.full(layout.frame_shape, low).tolist(),
        "high": np.full(layout.frame_shape, high).tolist(),
    }
    action: dict[str, Any] = {"type": "Discrete", "dtype": "int64", "start": 0, "n": layout.num_actions}
    if layout.action_low is not None and layout.action_high is not None:
        action = {"type": "Box", "dtype": "float32", "shape": [len(layout.action_low)]}
        action |= {"low": list(layout.action_low), "high": list(layout.action_high)}
    read_back = minari.layout_of(layout.game, observation, action, path / "data" / "metadata.json")
    if (difference := _difference(read_back, layout)) is not None:
        raise UserError(f"Minari cannot hold this recording of {layout.game}: {difference}")
    name = re.sub(r"[^-\w]+", "-", path.name)
    return {
        "dataset_id": name if re.search(r"-v\d+$", name) else f"{name}-v0",
        "minari_version": _MINARI,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(observation),
        "action_space": json.dumps(action),
        "description": f"{layout.game}, recorded by rlcls. "
        + (f"Observations are single frames; {layout.stack} are stacked to act on." if layout.stack else ""),
        "rlcls_recording": recording.identity,
        "rlcls_source": recording.manifest.source,
    }


def _write_observations(group: Any, recording: Recording, first: int, last: int, *, repeat: bool) -> None:
    """Writes the frames of an episode, and the last one again if `repeat`."""
    frames = recording.columns.frames
    count, shape = last - first + repeat, recording.manifest.layout.frame_shape
    store = group.create_dataset(
        "observations",
        (count, *shape),
        frames.dtype,
        chunks=(min(count, 64), *shape),
        compression="gzip",
        compression_opts=1,
        fletcher32=True,  # a flipped bit is an error when it is read
    )
    for start in range(first, last, _BLOCK):
        stop = min(start + _BLOCK, last)
        recording.check(np.arange(start, stop))
        store[start - first : stop - first] = frames[start:stop]
    if repeat:
        store[-1] = frames[last - 1]


def _checkpoints(recording: Recording) -> Iterator[Int64[np.ndarray, "rows"]]:
    """The rows of each checkpoint, -1 for a row of zeros."""
    columns = recording.columns
    pieces: list[np.ndarray] = []
    size, after_terminal = 0, True
    for first, last in _episodes(columns):
        terminals = np.flatnonzero(columns.terminals[first:last])
        end = first + int(terminals[0]) + 1 if len(terminals) else last
        if end < last - 1:
            raise UserError(
                f"DQN Replay cannot hold this recording: row {end - 1} is terminal and its episode goes on, as where "
                "a lost life is terminal"
            )
        begins = columns.starts[first] == BEGINS
        if not begins:
            _check_unlike_padding(recording, first, end)
        piece = np.concatenate([np.full(_PADDING * begins, -1), np.arange(first, end)])
        if pieces and not (begins and after_terminal and size + len(piece) <= _CHECKPOINT):
            yield np.concatenate(pieces)
            pieces, size = [], 0
        pieces.append(piece)
        size, after_terminal = size + len(piece), bool(len(terminals))
    if pieces:
        yield np.concatenate(pieces)


def _check_unlike_padding(recording: Recording, first: int, end: int) -> None:
    """Raises a UserError if the first rows of a checkpoint would be taken for the zeros before an episode."""
    rows = np.arange(first, min(first + _PADDING, end))
    recording.check(rows)
    part = recording.columns.part(first, int(rows[-1]) + 1)
    if not (part.frames.any() or part.actions.any() or part.terminals.any()):
        raise UserError(f"DQN Replay cannot hold this recording: rows {first} to {rows[-1]} are zeros")


def _write_checkpoint(
    logs: Path, number: int, recording: Recording, rows: Int64[np.ndarray, "rows"], tick: Tick
) -> None:
    """Writes the files of one checkpoint; their last row is never read."""
    columns, size = recording.columns, len(rows) + 1
    is_recorded = rows >= 0

    def padded(column: np.ndarray, dtype: str) -> np.ndarray:
        values = np.zeros(size, dtype)
        values[:-1][is_recorded] = column[rows[is_recorded]]
        return values

    def frames() -> Iterator[UInt8[np.ndarray, "block 84 84"]]:
        for start in range(0, size, _BLOCK):
            block = rows[start : start + _BLOCK]
            values = np.zeros((min(_BLOCK, size - start), 84, 84), np.uint8)
            recording.check(block[block >= 0])
            values[: len(block)][block >= 0] = columns.frames[block[block >= 0]]
            yield values
            tick(int(block.max(initial=-1)) + 1)

    small = {
        "$store$_action": padded(columns.actions, "int32"),
        "$store$_reward": np.clip(padded(columns.rewards, "float32"), -1, 1),
        "$store$_terminal": padded(columns.terminals, "uint8"),
        "add_count": np.array(len(rows)),
        # Dopamine's replay samples nothing that a stack of four or a one-step return would take across the cursor.
        "invalid_range": np.arange(len(rows) - 1, len(rows) + 4) % size,
    }
    for name, array in small.items():
        _write_array(logs / f"{name}_ckpt.{number}.gz", array.dtype, array.shape, iter([array]))
    _write_array(logs / f"$store$_observation_ckpt.{number}.gz", np.dtype(np.uint8), (size, 84, 84), frames())


def _write_array(
    path: Path, dtype: np.dtype, shape: tuple[int, ...], blocks: Iterator[Shaped[np.ndarray, "..."]]
) -> None:
    """Writes the gzip of a .npy, with equal bytes for equal arrays."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(block.tobytes())
