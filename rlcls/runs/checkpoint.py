"""Checkpoints that are whole or absent, and that cost what is new since the last one.

A checkpoint is a folder `checkpoints/<steps>`, named by the loop's units so far (agent steps, or updates). Its
`manifest.json` lists every file that it consists of, with size and SHA-256: the tree that Orbax wrote, the small
arrays and counters, and the replay's segments, which lie in `replay/` and are shared between checkpoints. Everything
is on the disk before the folder gets its name, a segment is removed only when no kept checkpoint lists it, and files
that do not match their manifest are never read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from rlcls._errors import UserError
from rlcls.training.loop import Rows, Saved

from . import segments
from .files import DAMAGED, Seal, pack, sync, unpack
from .segments import Segment

FOLDER, MANIFEST = "checkpoints", "manifest.json"
_TREE, _ARRAYS, _COUNTERS = "tree", "arrays.npz.zst", "counters.json"


class Checkpoint(NamedTuple):
    """One checkpoint, checked against its manifest.

    Attributes:
      folder: where it lies.
      steps: the loop's units so far, when it was taken.
      counters: JSON-able values: those of the loop under "loop", others of the run.
      arrays: small arrays by name.
      segments: files of rows, oldest first.
      parts: size and SHA-256 of every file that it consists of, by its path in the run folder.
    """

    folder: Path
    steps: int
    counters: dict[str, Any]
    arrays: dict[str, np.ndarray]
    segments: list[Segment]
    parts: dict[str, Seal]

    def tree(self, like: PyTree) -> PyTree:
        """The saved tree, or the part of it that `like` has, with the shapes, dtypes and shardings of `like`.

        Args:
          like: a pytree of arrays or `jax.ShapeDtypeStruct`s. Entries of dicts may be missing.
        """
        import orbax.checkpoint as ocp

        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        options = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore((self.folder / _TREE).resolve(), args=options)

    def saved(self, like: PyTree, rows: Rows | None) -> Saved:
        """Everything that the loop saved, for its `restore`.

        Args:
          like: structure, shapes and dtypes of the tree, from `Loop.save` of a fresh loop.
          rows: where the rows are written, of a fresh loop.
        """
        if rows is not None:
            segments.read(self.segments, rows)
        return Saved(self.tree(like), self.arrays, self.counters["loop"], rows)


class Checkpoints:
    """The checkpoints of one run, for the process that writes them.

    Args:
      run_dir: the run folder.
      keep: checkpoints kept, at least 1.
    """

    def __init__(self, run_dir: Path, keep: int):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self._run_dir, self._keep = run_dir, keep
        self._segments: list[Segment] = []  # of the newest checkpoint
        self._parts: dict[str, Seal] = {}

    def resume(self) -> tuple[Checkpoint | None, list[str]]:
        """As `load`. Damaged checkpoints are removed, so that no later one shares their files."""
        _tidy(self._run_dir / FOLDER)
        checkpoint, remarks = load(self._run_dir)
        for folder in folders(self._run_dir):
            if checkpoint is None or folder.name > checkpoint.folder.name:
                _discard(folder)
        if checkpoint:
            self._segments, self._parts = checkpoint.segments, checkpoint.parts
        return checkpoint, remarks

    def save(self, steps: int, saved: Saved, **counters: Any) -> None:
        """Writes a checkpoint and, once it is whole, removes the oldest ones.

        Args:
          steps: the loop's units so far; they name the checkpoint, and one of the same name is replaced.
          saved: by the loop.
          counters: the run's own, JSON-able.

        Raises:
          UserError: the disk is full or cannot be written. The checkpoint before is untouched.
        """
        final = self._run_dir / FOLDER / f"{steps:012d}"
        working, replaced = (final.with_name(f".{final.name}.{state}") for state in ("partial", "replaced"))
        try:
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir(parents=True)
            written = segments.write(self._run_dir, saved.rows, self._segments) if saved.rows else []
            _reserve(working / "room", saved.tree)
            _save_tree(working / _TREE, saved.tree)
            pack(working / _ARRAYS, saved.arrays)
            text = json.dumps(counters | {"loop": saved.counters}, allow_nan=False)
            (working / _COUNTERS).write_text(text)
            parts = {
                str(Path(FOLDER, final.name, path.relative_to(working))): Seal.of(path)
                for path in _files(working)
            }
            for segment in written:
                name = str(segment.path.relative_to(self._run_dir))
                # The seals of segments that the checkpoint before lists are reused. Reading them again would read
                # the whole replay, and would accept any damage since then.
                parts[name] = self._parts.get(name) or Seal.of(segment.path)
            manifest = {
                "steps": steps,
                "parts": dict(sorted(parts.items())),
                "segments": [str(segment.path.relative_to(self._run_dir)) for segment in written],
            }
            (working / MANIFEST).write_text(json.dumps(manifest, indent=1))
            shared = [self._run_dir / segments.FOLDER] if written else []
            for path in [*working.rglob("*"), working, *shared, self._run_dir]:
                sync(path)
            if final.exists():  # set aside until the new one has its name: a kill must leave one of them
                final.rename(replaced)
            working.rename(final)
            sync(final.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(working, ignore_errors=True)
            if replaced.exists() and not final.exists():
                replaced.rename(final)
            with contextlib.suppress(OSError):
                _prune(self._run_dir, self._keep)  # the segments that were written for it
            reason = "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise UserError(f"cannot write the checkpoint {steps} to {self._run_dir}: {reason}") from error
        self._segments, self._parts = written, parts
        _prune(self._run_dir, self._keep)


def load(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole.

    Returns:
      The checkpoint, or None where there is none, and a line on each newer one that is damaged.
    """
    remarks: list[str] = []
    for number, folder in reversed(list(enumerate(folders(run_dir)))):
        try:
            return open_whole(run_dir, folder), remarks
        except DAMAGED as error:
            remedy = "falling back to the one before" if number else "there is none before it"
            remarks.append(f"checkpoint {folder} is damaged ({error}); {remedy}")
    return None, remarks


def open_whole(run_dir: Path, folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, checked against its manifest.

    Raises:
      DAMAGED: it has no manifest, or differs from it.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    parts = {name: Seal(seal) for name, seal in manifest["parts"].items()}
    for name, seal in parts.items():
        seal.check(run_dir / name, name)
    return Checkpoint(
        folder=folder,
        steps=manifest["steps"],
        counters=json.loads((folder / _COUNTERS).read_text()),
        arrays=unpack(folder / _ARRAYS),
        segments=[Segment.at(run_dir / name) for name in manifest["segments"]],
        parts=parts,
    )


def folders(run_dir: Path) -> list[Path]:
    """Folders that may be checkpoints, oldest first."""
    paths = (run_dir / FOLDER).glob("[0-9]*")
    return sorted(path for path in paths if path.is_dir() and re.fullmatch(r"\d{12}", path.name))


def _prune(run_dir: Path, keep: int) -> None:
    for folder in folders(run_dir)[:-keep]:
        _discard(folder)
    named: set[str] = set()
    for folder in folders(run_dir):
        try:
            named.update(json.loads((folder / MANIFEST).read_text())["parts"])
        except DAMAGED:
            return  # a damaged manifest may have listed any segment
    segments.prune(run_dir, named)


def _tidy(folder: Path) -> None:
    """Finishes what a kill cut short in `Checkpoints.save`."""
    for left in folder.glob(".*"):
        match = re.fullmatch(r"\.(\d{12})\.(partial|replaced)", left.name)
        if not match:
            continue
        final = folder / match[1]
        if match[2] == "replaced" and not final.exists():
            left.rename(final)
        else:
            shutil.rmtree(left)


def _discard(folder: Path) -> None:
    # The manifest goes first, so that a kill leaves nothing that looks like a checkpoint.
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _reserve(path: Path, tree: PyTree) -> None:
    """Raises an OSError if the disk has no room for the tree: Orbax would report it in pages of tracebacks."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + 1
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            file.write(bytes(size))
    path.unlink()


def _save_tree(path: Path, tree: PyTree) -> None:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.resolve(), args=ocp.args.PyTreeSave(tree))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
