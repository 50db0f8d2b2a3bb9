"""Where a run goes on: at its newest checkpoint, or from what is left of it if the user allows that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlcls._errors import UserError, one_line
from rlcls.distributed import Hosts
from rlcls.files import DAMAGED

from . import checkpoint as checkpoints_
from . import metrics, segments
from .checkpoint import Checkpoint
from .folder import FACTS, RunFolder

CHOICES = ("weights", "restart")
# The record of checkpoints comes last: as long as it is there, a run does not begin again without being told.
HOSTS = "hosts"
"""The folder of the metrics of the other processes of a run of several, by their numbers."""
_OUTPUTS = (
    FACTS,
    metrics.FILE,
    "tensorboard",
    "wandb",
    "evaluations",
    "videos",
    "learning_curve.png",
    segments.FOLDER,
    HOSTS,
    checkpoints_.FOLDER,
    checkpoints_.RECORD,
)
_COUNTERS = {"metrics", "unfinished", "loop"}  # the run needs these of a checkpoint


class Start(NamedTuple):
    """Where a run goes on.

    Attributes:
      checkpoint: the checkpoint that it goes on from; None begins it.
      replay: whether the checkpoint's rows are restored; otherwise they are gathered again.
      metrics: the position at which the metrics go on; None begins them.
      remarks: lines for the user.
      is_dealt: whether another number of processes wrote the checkpoint, which then is as the first of them wrote it.
    """

    checkpoint: Checkpoint | None
    replay: bool
    metrics: Mapping[str, Any] | None
    remarks: list[str]
    is_dealt: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the run goes on exactly as the checkpoint left it, so that saving it again would change nothing."""
        return (
            self.checkpoint is not None
            and self.replay
            and not self.is_dealt
            and self.metrics == self.checkpoint.counters["metrics"]
        )

    @property
    def segments(self) -> list[segments.Segment]:
        """The replay's files that the run goes on with."""
        return self.checkpoint.segments if self.checkpoint and self.replay and not self.is_dealt else []

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The units and the return of the best checkpoint, as long as its folder exists."""
        best = self.checkpoint.counters.get("best") if self.checkpoint else None
        if self.checkpoint is None or best is None:
            return None
        names = {int(folder.name) for folder in checkpoints_.folders(self.checkpoint.folder.parents[1])}
        return best if best["steps"] in names else None


def start(folder: RunFolder, allowed: str | None = None) -> Start:
    """Finds where the run in `folder` goes on.

    A run that has written a checkpoint goes on from the newest one that is whole. If none is whole, or lines of
    metrics.jsonl are damaged, the run is refused unless `allowed` says what may be done. A run that has written no
    checkpoint begins again. Nothing is moved before every check has passed. Checkpoints that are newer than the chosen
    one are then set aside, because the run writes checkpoints of their names.

    Args:
      folder: the run folder.
      allowed: "weights" goes on from the newest checkpoint whose weights are whole, without its replay, and sets a
        damaged metrics.jsonl aside. "restart" sets all results aside and begins the run again. Neither does anything
        to a run that can go on as it is.

    Raises:
      UserError: the run cannot go on. The message says what is missing or damaged, and which `allowed` would do.
    """
    run_dir = folder.path
    last = checkpoints_.last_written(run_dir)
    left = checkpoints_.tidy(run_dir)
    checkpoint, damaged = checkpoints_.load(run_dir)
    if checkpoint is None and last is None:
        return Start(None, True, None, left)
    remarks, problem = [], None
    replay = checkpoint is not None
    if checkpoint is None:
        problem = f"the checkpoints of {run_dir} are gone, the last of which was {last:,}"
        if damaged:
            problem = str(damaged[0])
        if allowed == "restart":
            return _restart(folder, problem)
        checkpoint, damaged = checkpoints_.load(run_dir, replay=False)
        if checkpoint is None or allowed is None:
            raise UserError(f"{problem}; put the files back, or give {_ways(checkpoint)}")
        remarks = [
            problem,
            f"the run goes on from the weights of {checkpoint.folder}; the replay is filled again",
        ]
    elif damaged:
        remarks = [f"{each}; falling back to the one before" for each in damaged]
    elif last is not None and checkpoint.steps < last:
        remarks = [f"checkpoint {last:,} is gone; falling back to the one before"]
    position = checkpoint.counters.get("metrics", {})
    if not (checkpoint.counters.keys() >= _COUNTERS and metrics.is_position(position)):
        problem = f"another version of rlcls wrote {checkpoint.folder}"
        if allowed == "restart":
            return _restart(folder, problem)
        raise UserError(f"{problem}; go on with that version, or give {_RESTART}")
    aside = [str(each.folder.relative_to(run_dir)) for each in damaged]
    try:
        metrics.check(run_dir, position)
    except UserError as error:
        if allowed == "restart":
            return _restart(folder, str(error))
        if allowed is None:
            ways = f"resume=weights (it is set aside, and new lines begin) or {_RESTART}"
            raise UserError(f"{error}; correct it or put it back, or give {ways}") from error
        remarks.append(f"{error}; new lines begin")
        aside += [metrics.FILE] if (run_dir / metrics.FILE).exists() else []
        position = {**position, "lines": 0}
    if allowed and not remarks:
        remarks.append(f"resume={allowed} is not needed: {checkpoint.folder} is whole")
    if aside:
        remarks.append(f"{folder.set_aside(aside)} holds {' and '.join(aside)}")
    return Start(checkpoint, replay, position, remarks + left)


def together(begun: Start | None, run_dir: Path, hosts: Hosts) -> Start:
    """Where a run of several processes goes on: the first one has chosen, the others read their own parts.

    Where another number of processes wrote the checkpoint, the metrics of all but the first are cut to it, so that
    those of a process which comes back later go on without the lines of steps that were made again.

    Args:
      begun: from `start` on the first process, None on the others.
      run_dir: the run folder, which all see.
      hosts: the processes.

    Raises:
      UserError: a process cannot read its own part.
    """
    lines: dict[str, int] = {}
    newest = begun.checkpoint if begun else None
    if begun and newest and newest.hosts != hosts.count:
        folders = (run_dir / HOSTS).glob("[0-9]*")
        lines = {each.name: metrics.cut(each, newest.counters["counts"]) for each in folders}
        begun = begun._replace(is_dealt=True)
    name, replay, is_dealt, lines = hosts.broadcast(
        begun and [newest and newest.folder.name, begun.replay, begun.is_dealt, lines]
    )
    if begun is not None:
        return begun
    if name is None:
        return Start(None, True, None, [])
    folder = run_dir / checkpoints_.FOLDER / name
    try:
        mine = checkpoints_.open_whole(run_dir, folder, replay=replay, host=0 if is_dealt else hosts.index)
    except DAMAGED as error:
        raise UserError(f"process {hosts.index} cannot read {folder}: {one_line(error)}") from error
    position = mine.counters["metrics"]
    if is_dealt:
        position = {**position, "lines": lines.get(str(hosts.index), 0)}
    return Start(mine, replay, position, [], is_dealt)


_RESTART = "resume=restart (all results are set aside, and the run begins again)"


def _ways(weights: Checkpoint | None) -> str:
    if weights is None:
        return _RESTART
    return (
        f"resume=weights (on from the weights at {weights.steps:,}, the replay is filled again) or {_RESTART}"
    )


def _restart(folder: RunFolder, problem: str) -> Start:
    place = folder.set_aside(_OUTPUTS)
    return Start(None, True, None, [problem, f"the run begins again; {place} holds its old results"])
