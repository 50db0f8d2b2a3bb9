"""Chooses where a run continues: at its newest whole checkpoint, or with less if the user allows it."""

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
from .saving import tidy

CHOICES = ("weights", "restart")
HOSTS = "hosts"
"""The folder with the metrics of the other processes of a run, by their numbers."""
# The results of a run, in the order in which they are set aside. The record of checkpoints is last, because a run that
# has one does not start again without `resume=restart`.
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
_COUNTERS = {"metrics", "unfinished", "loop"}  # counters of a checkpoint that the run needs


class Start(NamedTuple):
    """The checkpoint and the metrics from which a run continues.

    Attributes:
      checkpoint: the checkpoint from which it continues; None starts it from the beginning.
      replay: whether the checkpoint's rows are restored. If not, they are collected again.
      metrics: the position at which the metrics continue; None starts new ones.
      remarks: lines for the user.
      is_dealt: whether another number of processes wrote the checkpoint. `checkpoint` is then the first one's part.
    """

    checkpoint: Checkpoint | None
    replay: bool
    metrics: Mapping[str, Any] | None
    remarks: list[str]
    is_dealt: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the run continues exactly as the checkpoint left it, so that saving it again would change nothing."""
        return (
            self.checkpoint is not None
            and self.replay
            and not self.is_dealt
            and self.metrics == self.checkpoint.counters["metrics"]
        )

    @property
    def segments(self) -> list[segments.Segment]:
        """The files of the replay that the run continues with."""
        return self.checkpoint.segments if self.checkpoint and self.replay and not self.is_dealt else []

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The units and the return of the best checkpoint, if its folder exists."""
        best = self.checkpoint.counters.get("best") if self.checkpoint else None
        if self.checkpoint is None or best is None:
            return None
        names = {int(folder.name) for folder in checkpoints_.folders(self.checkpoint.folder.parents[1])}
        return best if best["steps"] in names else None


def start(folder: RunFolder, allowed: str | None = None) -> Start:
    """Finds where the run in `folder` continues.

    A run that has written a checkpoint continues from the newest whole one. If none is whole, or if lines of
    metrics.jsonl are damaged, this raises an error unless `allowed` permits a remedy. A run that has written no
    checkpoint starts again. Files are moved only after all checks have passed. Checkpoints that are newer than the
    chosen one are then set aside, because the run will write checkpoints with the same names.

    Args:
      folder: the run folder.
      allowed: "weights" continues from the newest checkpoint with whole weights, without its replay, and sets a damaged
        metrics.jsonl aside. "restart" sets all results aside and starts the run again. Both have no effect on a run
        that can continue anyway.

    Raises:
      UserError: the run cannot continue. The message says what is missing or damaged, and which `allowed` would help.
    """
    run_dir = folder.path
    last = checkpoints_.last_written(run_dir)
    left = tidy(run_dir)
    checkpoint, damaged = checkpoints_.load(run_dir)
    if checkpoint is None and last is None:
        return Start(None, True, None, left)
    remarks, problem = [], None
    replay = checkpoint is not None
    if checkpoint is None:
        problem = f"the checkpoints of {run_dir} are gone; the last one was {last:,}"
        if damaged:
            problem = str(damaged[0])
        if allowed == "restart":
            return _restart(folder, problem)
        checkpoint, damaged = checkpoints_.load(run_dir, replay=False)
        if checkpoint is None or allowed is None:
            raise UserError(f"{problem}; put the files back, or give {_ways(checkpoint)}")
        remarks = [
            problem,
            f"the run continues from the weights of {checkpoint.folder}; the replay is filled again",
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
        raise UserError(f"{problem}; continue with that version, or give {_RESTART}")
    aside = [str(each.folder.relative_to(run_dir)) for each in damaged]
    try:
        metrics.check(run_dir, position)
    except UserError as error:
        if allowed == "restart":
            return _restart(folder, str(error))
        if allowed is None:
            ways = f"resume=weights (it is set aside, and new lines begin) or {_RESTART}"
            raise UserError(f"{error}; repair it or put it back, or give {ways}") from error
        remarks.append(f"{error}; new lines begin")
        aside += [metrics.FILE] if (run_dir / metrics.FILE).exists() else []
        position = {**position, "lines": 0}
    if allowed and not remarks:
        remarks.append(f"resume={allowed} is not needed: {checkpoint.folder} is whole")
    if aside:
        remarks.append(f"{folder.set_aside(aside)} holds {' and '.join(aside)}")
    return Start(checkpoint, replay, position, remarks + left)


def together(begun: Start | None, run_dir: Path, hosts: Hosts) -> Start:
    """The `Start` of each of several processes. The first process chooses a checkpoint; the others read their parts.

    If another number of processes wrote the checkpoint, the metrics of all processes but the first lose the lines that
    are later than the checkpoint. The run repeats these steps, and a process that takes part again later continues its
    metrics without them.

    Args:
      begun: from `start` on the first process, None on the others.
      run_dir: the run folder, which all processes can read.
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


_RESTART = "resume=restart (all results are set aside, and the run starts again)"


def _ways(weights: Checkpoint | None) -> str:
    if weights is None:
        return _RESTART
    return f"resume=weights (continues from the weights at {weights.steps:,} and fills the replay again) or {_RESTART}"


def _restart(folder: RunFolder, problem: str) -> Start:
    place = folder.set_aside(_OUTPUTS)
    return Start(None, True, None, [problem, f"the run starts again; {place} holds its old results"])
