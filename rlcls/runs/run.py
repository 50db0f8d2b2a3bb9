"""Drives a loop to its last step or a signal, and writes down what it measures."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rlcls.evaluation.evaluator import Periodic
from rlcls.training.loop import Loop

from .checkpoint import Checkpoints
from .metrics import Metrics
from .progress import Progress

OVERHEAD = 1.1  # evaluations and checkpoints add about a tenth to the time that training takes
# Kind of line and field -> name on the display.
_SHOWN = {
    ("train", "episode_return"): "training_return",
    ("eval", "return_mean"): "evaluation_return",
    ("train", "loss"): "loss",
}


class _Stopped(Exception):
    """A signal came during an evaluation."""


def run(
    loop: Loop,
    *,
    steps: int,
    evaluators: Sequence[Periodic],
    metrics: Metrics,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    keep_every: int = 0,
    keep_best: bool = False,
    stopped: Callable[[], bool],
    unfinished: Collection[str] = (),
    best: Mapping[str, Any] | None = None,
    progress: Progress,
) -> None:
    """Advances `loop` to `steps` units or until `stopped`, and saves it then.

    Args:
      loop: where it stands.
      steps: the loop's units at which the run ends.
      evaluators: each is called every so many units, and at the end.
      metrics: where lines are written.
      checkpoints: where checkpoints are written.
      checkpoint_every: units between two checkpoints.
      keep_every: units between two checkpoints that are never removed; 0: none.
      keep_best: whether a checkpoint is written, and kept, when an evaluation's mean return is the highest so far.
      stopped: whether a signal asks to end; called after every step, of evaluations too.
      unfinished: kinds of evaluators that a signal interrupted at the restored moment; they are called first.
      best: the units and the return of the best checkpoint at the restored moment.
      progress: the display, opened by the caller.

    Raises:
      Diverged: an update gave numbers that are not finite.
      UserError: something cannot be written.
    """
    unfinished, best = list(unfinished), best if keep_best else None
    unsaved = True
    shown: dict[str, Any] = dict.fromkeys(_SHOWN.values())

    def count() -> int:
        return loop.counts[loop.unit]

    def write(kind: str, values: dict[str, Any]) -> None:
        metrics.write(kind, loop.counts, **values)
        shown.update({_SHOWN[kind, name]: values[name] for name in values if (kind, name) in _SHOWN})

    def save(*, permanent: bool = False) -> None:
        nonlocal unsaved
        state = {
            "metrics": metrics.position(),
            "unfinished": unfinished,
            "number": loop.number,
            "counts": loop.counts,
        }
        for remark in checkpoints.save(count(), loop.save(), permanent=permanent, best=best, **state):
            print(f"note: {remark}", file=sys.stderr)
        unsaved = False

    def tick(done: int, total: int) -> None:
        if stopped():
            raise _Stopped
        progress.update(count(), **shown)

    def evaluate(due: Sequence[Periodic]) -> list[str]:
        """Calls evaluators; returns the kinds of those that a signal prevented."""
        nonlocal best
        for number, (kind, evaluator, _) in enumerate(due):
            try:
                values = evaluator(loop.acting(), loop.number, tick)
            except _Stopped:
                return [kind for kind, _, _ in due[number:]]
            write(kind, values)
            score = values.get("return_mean") if keep_best and kind == "eval" else None
            if score is not None and score > (best["return_mean"] if best else -math.inf):
                best = {"steps": count(), "return_mean": score}
        return []

    if unfinished:
        unfinished = evaluate([periodic for periodic in evaluators if periodic.kind in unfinished])
        save()
    while count() < steps and not stopped():
        before, unsaved = count(), True
        for kind, values in loop.advance():
            write(kind, values)
        last = count() >= steps
        due = [each for each in evaluators if each.every and (last or _passed(each.every, before, count()))]
        unfinished = evaluate(due)
        permanent = keep_every > 0 and _passed(keep_every, before, count())
        is_best = best is not None and best["steps"] == count()
        if last or permanent or is_best or _passed(checkpoint_every, before, count()):
            save(permanent=permanent)
        progress.update(count(), **shown)
    if stopped() and unsaved:
        print("saving a checkpoint; a second Ctrl-C or SIGTERM stops without it", flush=True)
        save()


def _passed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` lies above `before` and not above `now`."""
    return now // every > before // every
