"""Checkpoints are whole or absent, and each one writes only what is new since the last one.

A checkpoint is a folder `checkpoints/<steps>`, named by the loop's units so far (agent steps, or updates). Its
`manifest.json` lists every file that it consists of, with size and SHA-256: the tree that Orbax wrote, the small
arrays and counters, and the replay's segments, which are in `replay/` and belong to several checkpoints. With several
hosts, each one writes its own arrays, counters and segments (host-1-arrays.npz.zst, replay/1-of-2/). All files are read
back and are on the disk before the folder gets its name. Files that do not match their manifest are never read. Foreign
files in a checkpoint's folder are never removed, except from Orbax's folder `tree/` and from unfinished checkpoints,
which are removed whole.

The newest `keep` checkpoints keep their segments, so that a run can continue from them. Older ones are kept if they are
permanent or the best so far. Their segments are removed, so they contain an agent that can act, but no replay.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import PyTree

from rlcls._errors import UserError, one_line
from rlcls.distributed import ALONE, Hosts
from rlcls.files import DAMAGED, NotAsWritten, Seal, pack, sync, unpack, write_text, write_verified
from rlcls.training.loop import Dealing, Rows, Saved

from . import segments
from . import tree as trees
from .segments import Segment

_T = TypeVar("_T")
FOLDER, MANIFEST = "checkpoints", "manifest.json"
RECORD = "last_checkpoint.json"
"""A file in the run folder that says that a checkpoint was written, and when."""
_ARRAYS, _COUNTERS = "arrays.npz.zst", "counters.json"
_ATTEMPTS = (
    100  # the most attempts of `read`, which fail if training removes or replaces checkpoints meanwhile
)


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


class Checkpoints:
    """The checkpoints of one run, for the processes that write them: usually one, or one on each of several hosts.

    Every process writes its own rows, small arrays and counters. All write the tree together. The first process writes
    the manifest and removes old checkpoints.

    Args:
      run_dir: the run folder, which must exist, and which all hosts see.
      keep: the number of newest checkpoints that are kept, at least 1.
      segments: files of rows that the run goes on with, oldest first; `save` writes only the rows after them.
      hosts: the processes; all call `save` at the same moments.
    """

    def __init__(self, run_dir: Path, keep: int, segments: Sequence[Segment] = (), hosts: Hosts = ALONE):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self._run_dir, self._keep, self._hosts = run_dir, keep, hosts
        self._segments = list(segments)

    @property
    def last(self) -> Path | None:
        """The folder of the newest checkpoint; None if there is none."""
        existing = folders(self._run_dir)
        return existing[-1] if existing else None

    def save(
        self,
        steps: int,
        saved: Saved,
        *,
        permanent: bool = False,
        best: Mapping[str, Any] | None = None,
        **counters: Any,
    ) -> list[str]:
        """Writes a checkpoint and, once it has been read back, removes the oldest ones.

        Args:
          steps: the loop's units so far. They name the checkpoint, which replaces one of the same name.
          saved: the loop's state.
          permanent: whether the checkpoint is never removed.
          best: the units ("steps") and the return ("return_mean") of the best checkpoint so far, which is not removed.
          counters: JSON-able values of the run.

        Returns:
          A line on each older checkpoint that could not be removed.

        Raises:
          UserError: the disk is full or cannot be written, or it gives back other bytes than were written. The
            previous checkpoint is unchanged.
        """
        draft = _Draft(self._run_dir, steps, self._hosts, self._segments)
        values = counters | {"best": best, "loop": saved.counters}
        try:
            self._together(lambda: draft.begin(saved.tree))
            own = self._together(lambda: draft.write_own(saved, values))
            self._together(lambda: trees.write(draft.working, saved.tree))
            self._together(lambda: draft.finish(own, permanent))
        except (OSError, NotAsWritten, UserError) as error:
            draft.give_up()
            if draft.is_first:
                _prune_segments(self._run_dir, self._keep)  # removes the segments that were written for it
            reason = trees.reason(error)
            raise UserError(f"cannot write the checkpoint {steps} to {self._run_dir}: {reason}") from error
        self._segments = draft.segments
        return self._remove_old(steps, draft.replaced, best) if draft.is_first else []

    def _together(self, work: Callable[[], _T]) -> list[_T]:
        """Calls `work` on every host, and returns the results of all; all raise if it fails on one of them."""
        result, problem = None, None
        try:
            result = work()
        except (OSError, NotAsWritten, UserError) as error:
            problem = error
        outcomes = self._hosts.gather((result, trees.reason(problem) if problem else None))
        if problem:
            raise problem
        for host, (_, reason) in enumerate(outcomes):
            if reason:
                raise UserError(f"process {host}: {reason}")
        return [each for each, _ in outcomes]

    def _remove_old(self, steps: int, replaced: Path, best: Mapping[str, Any] | None) -> list[str]:
        write_text(self._run_dir / RECORD, json.dumps({"steps": steps}))
        remarks = _discard(replaced) if replaced.exists() else []
        for folder in folders(self._run_dir)[: -self._keep]:
            if not _is_permanent(folder) and not (best and int(folder.name) == best["steps"]):
                remarks += _discard(folder)
        return remarks + _prune_segments(self._run_dir, self._keep)


class _Draft:
    """A checkpoint that is being written.

    Args:
      run_dir: the run folder.
      steps: the loop's units.
      hosts: the processes, all of which call the same methods.
      segments: the segments of the previous checkpoint.

    Attributes:
      is_first: whether this process is the first one.
      final: the folder of the finished checkpoint.
      working: the folder in which the checkpoint is written.
      replaced: the folder to which `finish` moves an older checkpoint of the same name.
      segments: the segments that hold this process's rows, written now or for the previous checkpoint.
    """

    def __init__(self, run_dir: Path, steps: int, hosts: Hosts, segments: list[Segment]):
        self._run_dir, self._steps, self._hosts = run_dir, steps, hosts
        self.is_first, self.segments = hosts.index == 0, segments
        self.final = run_dir / FOLDER / f"{steps:012d}"
        self.working, self.replaced = (
            self.final.with_name(f".{self.final.name}.{state}") for state in ("partial", "replaced")
        )

    def begin(self, tree: PyTree) -> None:
        """Makes the working folder, and raises an OSError if the disk has no room for the tree."""
        if not self.is_first:
            return
        shutil.rmtree(self.working, ignore_errors=True)
        # Without `parents`, mkdir fails if the run folder was removed or moved meanwhile.
        self.final.parent.mkdir(exist_ok=True)
        self.working.mkdir()
        trees.reserve(self.working / "room", tree)

    def write_own(self, saved: Saved, values: Mapping[str, Any]) -> tuple[dict[str, Seal], list[str]]:
        """Writes rows, small arrays and counters; returns the seals of all files by name, and the segments' names."""
        if saved.rows:
            folder = segments.folder(self._run_dir, self._hosts.index, self._hosts.count)
            self.segments = segments.write(folder, saved.rows, self.segments)
        else:
            self.segments = []
        arrays, text = _own_files(self.working, self._hosts.index)
        seals = {
            arrays: pack(arrays, saved.arrays),
            text: write_verified(text, json.dumps(values, allow_nan=False).encode()),
        }
        for path in [*seals, *([self.segments[-1].path.parent] if self.segments else [])]:
            sync(path)
        # The seals of segments that the previous checkpoint lists are reused. Hashing them again would read the
        # whole replay, and would accept any damage since then.
        shared = {str(each.path.relative_to(self._run_dir)): each.seal for each in self.segments}
        named = {str(Path(FOLDER, self.final.name, path.name)): seal for path, seal in seals.items()}
        return named | shared, list(shared)

    def finish(self, own: Sequence[tuple[dict[str, Seal], list[str]]], permanent: bool) -> None:
        """Writes the manifest of the files of all processes, and gives the folder its name."""
        if not self.is_first:
            return
        files = (path for path in sorted((self.working / trees.FOLDER).rglob("*")) if path.is_file())
        parts = {
            str(Path(FOLDER, self.final.name, path.relative_to(self.working))): Seal.of(path)
            for path in files
        }
        for seals, _ in own:
            parts |= seals
        manifest = {
            "steps": self._steps,
            "permanent": permanent or (self.final.exists() and _is_permanent(self.final)),
            "hosts": self._hosts.count,
            "parts": dict(sorted(parts.items())),
            "segments": [name for _, names in own for name in names],
        }
        write_verified(self.working / MANIFEST, json.dumps(manifest, indent=1).encode())
        for path in [*self.working.rglob("*"), self.working, self._run_dir]:
            sync(path)
        if self.final.exists():  # it is renamed, not removed, so that a kill leaves the old or the new one
            self.final.rename(self.replaced)
        self.working.rename(self.final)
        sync(self.final.parent)

    def give_up(self) -> None:
        """Removes what was written, and gives a replaced checkpoint its name back."""
        if self.is_first:
            shutil.rmtree(self.working, ignore_errors=True)
            if self.replaced.exists() and not self.final.exists():
                self.replaced.rename(self.final)


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
    arrays, counters = _own_files(folder, host)
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


def _own_files(folder: Path, host: int) -> tuple[Path, Path]:
    """The files of a host's small arrays and counters in the folder of a checkpoint."""
    return tuple(folder / (f"host-{host}-{name}" if host else name) for name in (_ARRAYS, _COUNTERS))  # type: ignore[return-value]


def folders(run_dir: Path) -> list[Path]:
    """The folders that may be checkpoints, oldest first."""
    paths = (run_dir / FOLDER).glob("[0-9]*")
    # The folder of a removed checkpoint stays if it contains a foreign file. It then has none of these files.
    names = MANIFEST, _ARRAYS, _COUNTERS
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


def _prune_segments(run_dir: Path, keep: int) -> list[str]:
    """Removes the segments that none of the newest `keep` checkpoints lists."""
    named: set[str] = set()
    for folder in folders(run_dir)[-keep:]:
        try:
            named.update(json.loads((folder / MANIFEST).read_text())["segments"])
        except DAMAGED:
            return []  # a damaged manifest may have listed any segment
    try:
        segments.prune(run_dir, named)
    except OSError as error:
        return [f"cannot remove old segments from {run_dir / segments.FOLDER}: {trees.reason(error)}"]
    return []


def _is_permanent(folder: Path) -> bool:
    """Whether the checkpoint is never removed; a manifest that cannot be read may have said so."""
    if not (folder / MANIFEST).exists():
        return False  # a kill cut its removal short
    try:
        return bool(json.loads((folder / MANIFEST).read_text()).get("permanent"))
    except DAMAGED:
        return True


def tidy(run_dir: Path) -> list[str]:
    """Cleans up after a kill during `Checkpoints.save`: removes an unfinished checkpoint, and gives a replaced one its
    name back if the new one has not got it.

    Returns:
      A line on each folder that could not be removed.
    """
    remarks, folder = [], run_dir / FOLDER
    for left in folder.glob(".*"):
        match = re.fullmatch(r"\.(\d{12})\.(partial|replaced)", left.name)
        if not match or not left.is_dir():
            continue
        final = folder / match[1]
        try:
            if match[2] == "replaced" and not final.exists():
                left.rename(final)
            else:
                shutil.rmtree(left)
        except OSError as error:
            remarks.append(f"cannot remove {left}: {trees.reason(error)}")
    return remarks


def _discard(folder: Path) -> list[str]:
    """Removes the files of a checkpoint, and its folder unless something else lies there."""
    try:
        # The manifest goes first, so that a kill leaves nothing that looks like a checkpoint.
        own = (path for name in (_ARRAYS, _COUNTERS) for path in folder.glob(f"host-*-{name}"))
        for path in [*(folder / name for name in (MANIFEST, _ARRAYS, _COUNTERS)), *own]:
            path.unlink(missing_ok=True)
        if (folder / trees.FOLDER).exists():
            shutil.rmtree(folder / trees.FOLDER)
    except OSError as error:
        return [f"cannot remove the checkpoint {folder}: {trees.reason(error)}"]
    with contextlib.suppress(OSError):
        folder.rmdir()
    return []
