"""Where a run goes on: at its newest checkpoint, or from what is left of it if the user allows that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rlcls._errors import UserError

from . import checkpoint as checkpoints_
from . import metrics, segments
from .checkpoint import Checkpoint, Checkpoints
from .folder import FACTS, RunFolder

CHOICES = ("weights", "restart")
# The record of checkpoints comes last: as long as it is there, a run does not begin again without being told.
_OUTPUTS = (
    FACTS,
    metrics.FILE,
    "tensorboard",
    "wandb",
    "evaluations",
    "videos",
    "learning_curve.png",
    segments.FOLDER,
    checkpoints_.FOLDER,
    checkpoints_.RECORD,
)


class Start(NamedTuple):
    """Where a run goes on.

    Attributes:
      checkpoint: the checkpoint that it goes on from; None begins it.
      replay: whether the checkpoint's rows are restored; otherwise they are gathered again.
      metrics: the position at which the metrics go on; None begins them.
      remarks: lines for the user.
    """

    checkpoint: Checkpoint | None
    replay: bool
    metrics: Mapping[str, Any] | None
    remarks: list[str]


def start(folder: RunFolder, checkpoints: Checkpoints, allowed: str | None = None) -> Start:
    """Finds where the run in `folder` goes on.

    A run that has written a checkpoint goes on from the newest one that is whole. If none is whole, or lines of
    metrics.jsonl are damaged, the run is refused unless `allowed` says what may be done. A run that has written no
    checkpoint begins again.

    Args:
      folder: the run folder.
      checkpoints: its checkpoints.
      allowed: "weights" goes on from the newest checkpoint whose weights are whole, without its replay, and sets a
        damaged metrics.jsonl aside. "restart" sets all results aside and begins the run again. Neither does anything
        to a run that can go on as it is.

    Raises:
      UserError: the run cannot go on; says what is missing or damaged, and which `allowed` would do.
    """
    run_dir = folder.path
    last = checkpoints_.last_written(run_dir)
    checkpoint, remarks = checkpoints.resume()
    if checkpoint is None and last is None:
        return Start(None, True, None, remarks)
    replay = checkpoint is not None
    if checkpoint is None:
        weights = checkpoints_.load(run_dir, replay=False)[0]
        damage = f"the checkpoints of {run_dir} are gone, the last of which was {last:,}"
        if remarks:
            damage = remarks[0].rpartition("; ")[0]
        if allowed == "restart":
            return _restart(folder, damage)
        if weights is None or allowed is None:
            raise UserError(f"{damage}; put the files back, or give {_ways(weights)}")
        checkpoint, _ = checkpoints.resume(replay=False)
        assert checkpoint is not None
        remarks = [
            damage,
            f"the run goes on from the weights of {checkpoint.folder}; the replay is filled again",
        ]
    elif last is not None and checkpoint.steps < last and not remarks:
        remarks = [f"checkpoint {last:,} is gone; falling back to the one before"]
    position = metrics.position_in_lines(run_dir, checkpoint.counters["metrics"])
    try:
        metrics.check(run_dir, position)
    except UserError as error:
        if allowed == "restart":
            return _restart(folder, str(error))
        if allowed is None:
            ways = f"resume=weights (it is set aside, and new lines begin) or {_RESTART}"
            raise UserError(f"{error}; correct it or put it back, or give {ways}") from error
        place = folder.set_aside([metrics.FILE])
        remarks.append(f"{error}; {place} holds it, and new lines begin")
        position = {**position, "lines": 0}
    if allowed and not remarks:
        remarks.append(f"resume={allowed} is not needed: {checkpoint.folder} is whole")
    return Start(checkpoint, replay, position, remarks)


_RESTART = "resume=restart (all results are set aside, and the run begins again)"


def _ways(weights: Checkpoint | None) -> str:
    if weights is None:
        return _RESTART
    return (
        f"resume=weights (on from the weights at {weights.steps:,}, the replay is filled again) or {_RESTART}"
    )


def _restart(folder: RunFolder, damage: str) -> Start:
    place = folder.set_aside(_OUTPUTS)
    return Start(None, True, None, [damage, f"the run begins again; {place} holds its old results"])
