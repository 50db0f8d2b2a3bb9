"""A checkpoint on the disk, and how it is read.

A checkpoint is a folder `checkpoints/<steps>`, named by the loop's units so far (agent steps, or updates). Its
`manifest.json` lists every file that it consists of, with size and SHA-256: the tree that Orbax wrote, the small
arrays and counters, and the replay's segments, which are in `replay/` and belong to several checkpoints. With several
hosts, each one writes its own arrays, counters and segments (host-1-arrays.npz.zst, replay/1-of-2/). Files that do not
match their manifest are never read. `saving.py` writes and removes checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from rlcls._errors import UserError, one_line
from rlcls.files import DAMAGED, Seal, unpack
from rlcls.training.loop import Dealing, Rows, Saved

from . import segments
from . import tree as trees
from .segments import Segment

FOLDER, MANIFEST, ARRAYS, COUNTERS = "checkpoints", "manifest.json", "arrays.npz.zst", "counters.json"
RECORD = "last_checkpoint.json"
"""A file in the run folder that says that a checkpoint was written, and when."""
_ATTEMPTS = 100
"""The most attempts of `read`, which fail if training removes or replaces checkpoints meanwhile."""


class Checkpoint(NamedTuple):
    """One checkpoint that matches its manifest.

    Attributes:
      folder: the folder in which it lies.
      steps: the loop's units when it was taken.
      hosts: the number of processes that wrote it.
      counters: JSON-able values of one host. The loop's own are under "loop", and the others belong to the run.
      arrays: small arrays of that host by name.
      segments: files of the rows of that host's replay, oldest first.
    """

    folder: Path
    steps: int
    hosts: int
    counters: dict[str, Any]
    arrays: dict[str, np.ndarray]
    segments: list[Segment]

    def tree(self, like: PyTree) -> PyTree:
        """The saved tree, or the part of it that `like` has, with the shapes, dtypes and shardings of `like`.

        Args:
          like: a pytree of arrays or `jax.ShapeDtypeStruct`s. Entries of dicts may be missing.

        Raises:
          UserError: the tree has no such part, or its shapes differ.
        """
        return trees.read(self.folder, like)

    def saved(self, like: PyTree, rows: Rows | None) -> Saved:
        """Reads everything that the loop saved, for its `restore`.

        Args:
          like: a tree with the structure, shapes and dtypes of the saved one, from `Loop.save` of a fresh loop.
          rows: the rows of a fresh loop, which are filled with the saved ones; None leaves the rows out.
        """
        if rows is not None:
            segments.read(self.segments, rows)
        return Saved(self.tree(like), self.arrays, self.counters["loop"], rows)

    def dealt(self, like: PyTree, rows: Rows | None, loop: Dealing, host: int) -> Saved:
        """Like `saved`, for process `host` of a run with another number of processes than wrote the checkpoint."""
        manifest = json.loads((self.folder / MANIFEST).read_text())
        parts = [_part(self.folder, manifest, each) for each in range(self.hosts)]
        if rows is not None:
            segments.read_share([part.segments for part in parts], rows, host)
        tree = self.tree(like)
        return loop.deal([Saved(tree, part.arrays, part.counters["loop"], rows) for part in parts])


class Damaged(NamedTuple):
    """A checkpoint that differs from its manifest, or has none.

    Attributes:
      folder: the checkpoint's folder.
      reason: names the file and what is wrong with it.
    """

    folder: Path
    reason: str

    def __str__(self) -> str:
        return f"checkpoint {self.folder} is damaged ({self.reason})"


def load(run_dir: Path, *, replay: bool = True) -> tuple[Checkpoint | None, list[Damaged]]:
    """Finds the newest checkpoint that is whole; it changes nothing.

    Args:
      run_dir: the run folder.
      replay: whether its segments must be whole, too.

    Returns:
      The checkpoint, or None if there is none, and the newer ones that are damaged, newest first.
    """
    damaged: list[Damaged] = []
    for folder in reversed(folders(run_dir)):
        try:
            return open_whole(run_dir, folder, replay=replay), damaged
        except DAMAGED as error:
            damaged.append(Damaged(folder, one_line(error)))
    return None, damaged


def read(run_dir: Path, wanted: str, like: PyTree) -> tuple[Checkpoint, PyTree, list[str]]:
    """Reads a checkpoint and a part of its tree, also while a run goes on in the folder; the replay may be missing.

    Training removes and replaces checkpoints. If that happens during the reading, the choice is made again.

    Args:
      run_dir: the run folder.
      wanted: "latest", "best", or the units of a checkpoint.
      like: the part of the tree, as `Checkpoint.tree` takes it.

    Returns:
      The checkpoint, the part of its tree that `like` has, and a line on each newer checkpoint that is damaged.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or its tree has other shapes.
    """
    for attempt in range(_ATTEMPTS):
        before = _manifests(run_dir)
        try:
            checkpoint, remarks = _choose(run_dir, wanted)
            tree = checkpoint.tree(like)
        except Exception:  # Orbax has errors of many types for files that disappear
            if _manifests(run_dir) == before or attempt + 1 == _ATTEMPTS:
                raise
            continue
        now, name = _manifests(run_dir), checkpoint.folder.name
        if now.get(name) == before.get(name) is not None and (not remarks or now == before):
            break
    return checkpoint, tree, remarks


def _choose(run_dir: Path, wanted: str) -> tuple[Checkpoint, list[str]]:
    remarks: list[str] = []
    if wanted in ("latest", "best"):
        newest, damaged = load(run_dir, replay=False)
        if newest is None:
            raise UserError(
                f"{damaged[0]}; there is none before it that is whole"
                if damaged
                else f"{run_dir} has no checkpoint yet"
            )
        remarks = [f"{each}; falling back to the one before" for each in damaged]
        if wanted == "latest":
            return newest, remarks
        best = newest.counters.get("best")
        if best is None:
            raise UserError(
                f"{run_dir} has no best checkpoint: checkpoint.keep_best=true keeps it from now on"
            )
        wanted = str(best["steps"])
    existing = {str(int(folder.name)): folder for folder in folders(run_dir)}
    if wanted not in existing:
        raise UserError(f"{run_dir} has no checkpoint {wanted} ({', '.join(['latest', *existing])})")
    try:
        return open_whole(run_dir, existing[wanted], replay=False), remarks
    except DAMAGED as error:
        raise UserError(str(Damaged(existing[wanted], one_line(error)))) from error


def _manifests(run_dir: Path) -> dict[str, tuple[int, int]]:
    """The inode and time of each manifest, which change when a checkpoint is written, replaced or removed."""
    present = {}
    for folder in folders(run_dir):
        with contextlib.suppress(OSError):
            status = (folder / MANIFEST).stat()
            present[folder.name] = (status.st_ino, status.st_mtime_ns)
    return present


def open_whole(run_dir: Path, folder: Path, *, replay: bool = True, host: int = 0) -> Checkpoint:
    """Reads the checkpoint in `folder` and checks it against its manifest.

    Args:
      run_dir: the run folder.
      folder: the checkpoint's folder.
      replay: whether its segments are checked, too.
      host: the process whose arrays, counters and segments are read; those of all are checked.

    Raises:
      DAMAGED: the checkpoint has no manifest, or differs from it.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, seal in manifest["parts"].items():
        if replay or name not in manifest["segments"]:
            Seal(seal).check(run_dir / name, name)
    return _part(folder, manifest, host)


def _part(folder: Path, manifest: Mapping[str, Any], host: int) -> Checkpoint:
    """The checkpoint in `folder` as a host wrote it."""
    run_dir, hosts = folder.parents[1], manifest.get("hosts", 1)
    arrays, counters = own_files(folder, host)
    paths = {run_dir / name: Seal(manifest["parts"][name]) for name in manifest["segments"]}
    own = segments.folder(run_dir, host, hosts)
    return Checkpoint(
        folder=folder,
        steps=manifest["steps"],
        hosts=hosts,
        counters=json.loads(counters.read_text()),
        arrays=unpack(arrays),
        segments=[Segment.at(path, seal) for path, seal in paths.items() if path.parent == own],
    )


def own_files(folder: Path, host: int) -> tuple[Path, Path]:
    """The files of a host's small arrays and counters in the folder of a checkpoint."""
    return tuple(folder / (f"host-{host}-{name}" if host else name) for name in (ARRAYS, COUNTERS))  # type: ignore[return-value]


def folders(run_dir: Path) -> list[Path]:
    """The folders that may be checkpoints, oldest first."""
    paths = (run_dir / FOLDER).glob("[0-9]*")
    # The folder of a removed checkpoint stays if it contains a foreign file. It then has none of these files.
    names = MANIFEST, ARRAYS, COUNTERS
    return sorted(
        path
        for path in paths
        if re.fullmatch(r"\d{12}", path.name) and any((path / name).exists() for name in names)
    )


def last_written(run_dir: Path) -> int | None:
    """The units of the last checkpoint that was written: 0 if the record is damaged, None if there was none."""
    path = run_dir / RECORD
    if not path.exists():
        names = [int(folder.name) for folder in folders(run_dir)]
        return max(names, default=None)
    try:
        return int(json.loads(path.read_text())["steps"])
    except DAMAGED:
        return 0
