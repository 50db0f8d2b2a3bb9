"""Writes checkpoints whole or not at all, each with only what is new since the last one, and removes old ones.

All files are read back and are on the disk before a checkpoint's folder gets its name. Foreign files in that folder are
never removed, except from Orbax's folder `tree/` and from unfinished checkpoints, which are removed whole.

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
from typing import Any, TypeVar

from jaxtyping import PyTree

from rlcls._errors import UserError
from rlcls.distributed import ALONE, Hosts
from rlcls.files import DAMAGED, NotAsWritten, Seal, pack, sync, write_text, write_verified
from rlcls.training.loop import Saved

from . import segments
from . import tree as trees
from .checkpoint import ARRAYS, COUNTERS, FOLDER, MANIFEST, RECORD, folders, own_files
from .segments import Segment

_T = TypeVar("_T")


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
        arrays, text = own_files(self.working, self._hosts.index)
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
        own = (path for name in (ARRAYS, COUNTERS) for path in folder.glob(f"host-*-{name}"))
        for path in [*(folder / name for name in (MANIFEST, ARRAYS, COUNTERS)), *own]:
            path.unlink(missing_ok=True)
        if (folder / trees.FOLDER).exists():
            shutil.rmtree(folder / trees.FOLDER)
    except OSError as error:
        return [f"cannot remove the checkpoint {folder}: {trees.reason(error)}"]
    with contextlib.suppress(OSError):
        folder.rmdir()
    return []


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
