"""Checkpoints that are whole or are not there, and that cost what is new since the last one.

A checkpoint is a folder `checkpoints/<agent steps>` whose `manifest.json` names every file it stands on, with its size
and SHA-256: the pytrees that Orbax wrote, the small arrays and counters, and the replay's segments, which lie in
`replay/` and are shared between checkpoints. Everything is on the disk before the folder gets its name, a segment goes
only when no kept checkpoint names it, and what does not match its manifest is never read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlcls._errors import UserError
from rlcls.replay import FrameReplay

FOLDER, SEGMENTS, MANIFEST = "checkpoints", "replay", "manifest.json"
DAMAGED = (OSError, ValueError, KeyError, TypeError)  # what reading a damaged checkpoint may raise
_SEGMENT_BYTES = 1 << 28  # of frames, before compression: what one segment needs in memory while written


class Checkpoint(NamedTuple):
    """One checkpoint, checked against its manifest.

    Attributes:
      folder: where it is.
      agent_steps: when it was taken.
      counters: JSON-able numbers.
      arrays: small arrays by name.
      segments: first row and path of each replay segment.
      parts: size and SHA-256 of every file that it stands on, by its path in the run folder.
    """

    folder: Path
    agent_steps: int
    counters: dict[str, Any]
    arrays: dict[str, np.ndarray]
    segments: list[tuple[int, Path]]
    parts: dict[str, list[Any]]

    def tree(self, like: Any) -> Any:
        """The saved pytree, with the structure, shapes and dtypes of `like`."""
        import jax
        import orbax.checkpoint as ocp

        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            return checkpointer.restore(
                (self.folder / "tree").resolve(), args=ocp.args.StandardRestore(wanted)
            )

    def fill(self, replay: FrameReplay) -> None:
        """Puts the rows, and what sampling them needs, back into an empty replay."""
        replay.rows = self.counters["replay"]["rows"]
        replay.max_priority = self.counters["replay"]["max_priority"]
        for first, path in self.segments:
            columns = _unpack(path)
            # A ring holds its last `length` rows: the head of the oldest segment may have left it.
            late = max(0, replay.rows - replay.length - first)
            replay.write(first + late, {name: rows[late:] for name, rows in columns.items()})
        replay.priorities.assign_all(self.arrays["priorities"])
        # Checkpoints from before this was kept: take none for fresh.
        replay.drawn[:] = self.arrays.get("drawn", True)


class Checkpoints:
    """The checkpoints of one run, for the process that writes them.

    Args:
      run_dir: the run folder.
      keep: checkpoints kept, at least 1.
    """

    def __init__(self, run_dir: Path, keep: int):
        self._run_dir, self._keep = run_dir, keep
        self._segments: list[tuple[int, Path]] = []  # of the newest checkpoint
        self._parts: dict[str, list[Any]] = {}

    def resume(self) -> tuple[Checkpoint | None, list[str]]:
        """As `load`; what had to be passed over is removed, so that nothing is built on it."""
        _tidy(self._run_dir / FOLDER)
        checkpoint, passed_over = load(self._run_dir)
        for folder in folders(self._run_dir):
            if checkpoint is None or folder.name > checkpoint.folder.name:
                _discard(folder)
        if checkpoint:
            self._segments, self._parts = checkpoint.segments, checkpoint.parts
        return checkpoint, passed_over

    def save(
        self,
        agent_steps: int,
        *,
        tree: Any,
        arrays: dict[str, np.ndarray],
        counters: dict[str, Any],
        replay: FrameReplay,
    ) -> None:
        """Writes a checkpoint and, once it is whole, lets the oldest ones go.

        Args:
          agent_steps: names the checkpoint; one of that name is replaced.
          tree: pytree of arrays, for Orbax.
          arrays: small arrays by name.
          counters: JSON-able.
          replay: saved whole, by the segments that are not there yet.

        Raises:
          UserError: the disk is full or cannot be written. The checkpoint before is untouched.
        """
        final = self._run_dir / FOLDER / f"{agent_steps:012d}"
        working, replaced = (final.with_name(f".{final.name}.{state}") for state in ("partial", "replaced"))
        try:
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir(parents=True)
            _ask_for_room(working / "room", tree)
            segments = _write_segments(self._run_dir / SEGMENTS, replay, self._segments)
            _save_tree(working / "tree", tree)
            sampling = {"priorities": replay.priorities.weights, "drawn": replay.drawn}
            _pack(working / "arrays.npz.zst", sampling | arrays)
            counters = counters | {"replay": {"rows": replay.rows, "max_priority": replay.max_priority}}
            (working / "counters.json").write_text(json.dumps(counters, allow_nan=False))
            parts = {
                str(Path(FOLDER, final.name, path.relative_to(working))): _seal(path)
                for path in _files(working)
            }
            for _, path in segments:
                name = str(path.relative_to(self._run_dir))
                # What the checkpoint before named is not read again: that would cost the whole replay each time,
                # and take what has been damaged since for the truth.
                parts[name] = self._parts.get(name) or _seal(path)
            manifest = {
                "agent_steps": agent_steps,
                "parts": dict(sorted(parts.items())),
                "segments": [[first, str(path.relative_to(self._run_dir))] for first, path in segments],
            }
            (working / MANIFEST).write_text(json.dumps(manifest, indent=1))
            for path in [*working.rglob("*"), working, self._run_dir / SEGMENTS, self._run_dir]:
                _sync(path)
            if final.exists():  # set aside until the new one has its name: a kill must not find neither
                final.rename(replaced)
            working.rename(final)
            _sync(final.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(working, ignore_errors=True)
            with contextlib.suppress(OSError):
                _prune(self._run_dir, self._keep)  # the segments that were written for it
            why = "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise UserError(
                f"cannot write the checkpoint of agent step {agent_steps} to {self._run_dir}: {why}"
            ) from error
        self._segments, self._parts = segments, parts
        _prune(self._run_dir, self._keep)


def load(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole.

    Returns:
      The checkpoint, or None where there is none, and a line on each newer one that had to be passed over.
    """
    passed_over: list[str] = []
    there = folders(run_dir)
    for number, folder in reversed(list(enumerate(there))):
        try:
            return open_whole(run_dir, folder), passed_over
        except DAMAGED as error:
            before = "falling back to the one before" if number else "there is none before it"
            passed_over.append(f"checkpoint {folder} is damaged ({error}); {before}")
    return None, passed_over


def open_whole(run_dir: Path, folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, checked against its manifest.

    Raises:
      DAMAGED: it is not what its manifest says, or has none.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, (size, digest) in manifest["parts"].items():
        path = run_dir / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes instead of {size}")
        if _digest(path) != digest:
            raise ValueError(f"{name} does not match its checksum")
    return Checkpoint(
        folder=folder,
        agent_steps=manifest["agent_steps"],
        counters=json.loads((folder / "counters.json").read_text()),
        arrays=_unpack(folder / "arrays.npz.zst"),
        segments=[(first, run_dir / name) for first, name in manifest["segments"]],
        parts=manifest["parts"],
    )


def folders(run_dir: Path) -> list[Path]:
    """Folders that may be checkpoints, oldest first."""
    return sorted(path for path in (run_dir / FOLDER).glob("[0-9]*") if path.is_dir())


def _write_segments(
    folder: Path, replay: FrameReplay, have: list[tuple[int, Path]]
) -> list[tuple[int, Path]]:
    """Adds the rows since the last segment; drops from the list what has left the ring."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = [_rows_of(path)[1] for _, path in have]
    oldest = max(0, replay.rows - replay.length)
    kept = [segment for segment, end in zip(have, ends, strict=True) if oldest < end <= replay.rows]
    first = max([oldest, *(_rows_of(path)[1] for _, path in kept)])
    frame_bytes = replay.frames[:, 0].nbytes
    step = max(1, _SEGMENT_BYTES // frame_bytes)
    for start in range(first, replay.rows, step):
        end = min(start + step, replay.rows)
        path = folder / f"rows-{start:012d}-{end:012d}.npz.zst"
        partial = path.with_name(path.name + ".partial")
        _pack(partial, replay.read(start, end))
        _sync(partial)
        partial.rename(path)
        kept.append((start, path))
    return kept


def _rows_of(path: Path) -> tuple[int, int]:
    _, first, end = path.name.split(".")[0].split("-")
    return int(first), int(end)


def _prune(run_dir: Path, keep: int) -> None:
    for folder in folders(run_dir)[:-keep]:
        _discard(folder)
    named = set()
    for folder in folders(run_dir):
        try:
            named.update(json.loads((folder / MANIFEST).read_text())["parts"])
        except DAMAGED:
            return  # a damaged neighbour may name any segment
    for path in (run_dir / SEGMENTS).glob("rows-*"):
        if str(path.relative_to(run_dir)) not in named:
            path.unlink()


def _tidy(folder: Path) -> None:
    """Ends what a kill cut short in `Checkpoints.save`."""
    for left in folder.glob(".*"):
        final = folder / left.name.split(".")[1]
        if left.suffix == ".replaced" and not final.exists():
            left.rename(final)
        else:
            shutil.rmtree(left)


def _discard(folder: Path) -> None:
    # Without its manifest first, so that what is left of it after a kill is no checkpoint.
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _ask_for_room(path: Path, tree: Any) -> None:
    """Raises OSError if the tree would not fit: Orbax would say so in pages of tracebacks."""
    import jax

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + 1
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            file.write(bytes(size))
    path.unlink()


def _save_tree(path: Path, tree: Any) -> None:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(path.resolve(), args=ocp.args.StandardSave(tree))


def _pack(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import zstandard

    raw = io.BytesIO()
    np.savez(raw, **arrays)  # type: ignore[arg-type]
    # Level 1: frames of a game shrink twentyfold even so, and a checkpoint must not hold the run up.
    path.write_bytes(zstandard.ZstdCompressor(level=1).compress(raw.getbuffer()))


def _unpack(path: Path) -> dict[str, np.ndarray]:
    import zstandard

    raw = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        return dict(arrays)


def _seal(path: Path) -> list[Any]:
    """Size and checksum, as the manifest has them."""
    return [path.stat().st_size, _digest(path)]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
