"""Advances a loop to its last step or until a signal, and writes its metrics and checkpoints."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from rlcls._errors import one_line
from rlcls.distributed import ALONE, Hosts
from rlcls.evaluation.evaluator import Periodic
from rlcls.training import Diverged
from rlcls.training.loop import Loop, Tick

from .metrics import Metrics, check_values, is_number, read
from .progress import Progress
from .saving import Checkpoints
from .signals import Stopped, unless_stopped

_SAVING = "saving a checkpoint"
_CLIPPED, _CLIPPED_LINES = 0.1, 3  # warns if clip_fraction exceeds this in this many consecutive train lines
# Kind of line and field -> name on the display.
_SHOWN = {
    ("train", "episode_return"): "training_return",
    ("eval", "return_mean"): "evaluation_return",
    ("train", "loss"): "loss",
}


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
    hosts: Hosts = ALONE,
    unfinished: Collection[str] = (),
    best: Mapping[str, Any] | None = None,
    is_saved: bool = False,
    progress: Progress,
    shown: Mapping[str, Any] | None = None,
    widen: Callable[[], str] = lambda: "widen it",
) -> None:
    """Advances `loop` to `steps` units or until `stopped`, and then saves it.

    If the loop or an evaluator raises an exception, the loop is saved if possible and the exception is raised again. A
    note on the exception says what was saved and where a resume would start.

    All processes of a run call this function, and advance, save and stop at the same time. The first one evaluates
    while the others wait. After an exception in one of several processes nothing is saved, because the others may be at
    another step.

    Args:
      loop: the loop, new or restored.
      steps: the number of the loop's units at the end of the run.
      evaluators: the evaluators; each is called at its own period, and at the end.
      metrics: the open metrics.
      checkpoints: the writer of checkpoints.
      checkpoint_every: units between two checkpoints.
      keep_every: units between two checkpoints that are never removed; 0 keeps none.
      keep_best: whether to write and keep a checkpoint when an evaluation's mean return is the highest so far.
      stopped: returns whether a signal asks to end; it is called after every step, also of evaluations.
      hosts: the processes of the run.
      unfinished: kinds of evaluators that a signal interrupted before the resume; they are called first.
      best: the units and the return of the best checkpoint before the resume, which is kept even without `keep_best`.
      is_saved: whether the newest checkpoint already holds the current state.
      progress: the display, opened by the caller.
      shown: the latest values of the display, from `last_shown`; None for a new run.
      widen: returns the advice in the warning about targets outside the head's support.

    Raises:
      Diverged: an update gave numbers that are not finite.
      UserError: a file cannot be written, or an evaluator returned values that metrics cannot hold.
    """
    unfinished = list(unfinished)
    unsaved = not is_saved
    shown = dict.fromkeys(_SHOWN.values()) | dict(shown or {})
    clipped_lines = 0
    periods = {_phase_of(each.kind): each.every for each in evaluators if each.every}
    progress.expect(periods | {_SAVING: checkpoint_every})

    def count() -> int:
        return loop.counts[loop.unit]

    def stops() -> bool:
        """Whether all processes stop now."""
        return hosts.stops(asked=stopped())

    def interrupted() -> bool:
        return stopped() or hosts.stop_asked

    def show() -> None:
        progress.update(count(), **shown)

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[Tick]:
        with progress.phase(name) as tick, metrics.pause():
            yield tick

    def write(kind: str, values: dict[str, Any]) -> dict[str, Any]:
        written = metrics.write(kind, loop.counts, **values)
        shown.update(_shown_in(kind, written))
        return written

    def check_clipping(values: dict[str, Any]) -> None:
        nonlocal clipped_lines
        if clipped_lines < _CLIPPED_LINES:  # warns only once
            value = values.get("clip_fraction", 0.0)
            clipped: float = value if is_number(value) else 0.0
            clipped_lines = clipped_lines + 1 if clipped > _CLIPPED else 0
            if clipped_lines == _CLIPPED_LINES:
                share = f"{clipped:.0%} of the targets lie outside the support and are clipped"
                print(f"warning: {share}; {widen()}", file=sys.stderr, flush=True)

    def save(*, permanent: bool = False) -> None:
        nonlocal unsaved
        state = {
            "metrics": metrics.position(),
            "unfinished": unfinished,
            "number": loop.number,
            "counts": loop.counts,
        }
        with phase(_SAVING):
            remarks = checkpoints.save(count(), loop.save(), permanent=permanent, best=best, **state)
        unsaved = False
        for remark in remarks:
            print(f"note: {remark}", file=sys.stderr)

    def save_after(error: Exception, *, permanent: bool = False) -> None:
        """Saves the run after an exception, and adds a note that says where a resume would start."""
        reason = ""
        if not isinstance(error, Diverged) and hosts.count == 1:
            try:
                if unsaved:
                    save(permanent=permanent)
                step = f"{loop.unit[:-1].replace('_', ' ')} {count():,}"
                error.add_note(f"saved at {step}; the same command continues from there")
                return
            except Exception as second:  # the first exception is the one to report
                reason = f"not saved ({one_line(second)}); "
        last = checkpoints.last
        error.add_note(
            reason + (f"{last} is the last good checkpoint" if last else "there is no checkpoint yet")
        )
        if isinstance(error, Diverged):
            error.add_note(
                "a lower learning rate may help, or gradients clipped to a smaller norm (agent.max_gradient_norm)"
            )

    def evaluate(due: Sequence[Periodic], *, permanent: bool = False) -> list[str]:
        """Calls evaluators; returns the kinds of those that a signal interrupted or prevented.

        `permanent` says whether a checkpoint that is saved after an exception is never removed.
        """
        nonlocal best, unfinished
        for number, (kind, evaluator, _) in enumerate(due):
            left = [each.kind for each in due[number:]]
            outcome: dict[str, Any] | None = None  # None after a signal
            if hosts.index == 0:
                try:
                    with phase(_phase_of(kind)) as tick, contextlib.suppress(Stopped):
                        values = evaluator(loop.acting(), loop.number, unless_stopped(interrupted, tick))
                        check_values(kind, loop.counts, values)
                        outcome = values
                except Exception as error:
                    unfinished = left
                    save_after(error, permanent=permanent)
                    raise
                if outcome is not None:
                    written = write(kind, outcome)
                    show()
                    outcome = {"score": written.get("return_mean") if keep_best and kind == "eval" else None}
            outcome = hosts.broadcast(outcome)
            if outcome is None:
                return left
            score = outcome["score"]
            if score is not None and score > (best["return_mean"] if best else -math.inf):
                best = {"steps": count(), "return_mean": score}
        return []

    show()
    if unfinished:
        still_unfinished = evaluate([periodic for periodic in evaluators if periodic.kind in unfinished])
        if still_unfinished != unfinished:
            unfinished = still_unfinished
            save()
    while count() < steps and not unfinished and not stops():
        before = count()
        try:
            lines = loop.advance()
        except Exception as error:
            save_after(error)
            raise
        unsaved = True
        for kind, values in lines:
            written = write(kind, values)
            if kind == "train":
                check_clipping(written)
        show()
        last = count() >= steps
        due = [each for each in evaluators if each.every and (last or _passed(each.every, before, count()))]
        permanent = keep_every > 0 and _passed(keep_every, before, count())
        unfinished = evaluate(due, permanent=permanent)
        is_best = best is not None and best["steps"] == count()
        if last or permanent or is_best or _passed(checkpoint_every, before, count()):
            save(permanent=permanent)
    shown.update(_shown_in("train", loop.summary()))  # includes the updates since the last line
    show()
    if unsaved and (unfinished or stops()):
        print("saving a checkpoint; a second Ctrl-C or SIGTERM stops without it", flush=True)
        save()


def last_shown(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of the display after the last line of a run's metrics."""
    shown: dict[str, Any] = {}
    for row in read(run_dir):
        shown |= _shown_in(row["kind"], row)
    return shown


def _shown_in(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one line that the display shows, by their names on the display; None for null."""
    return {
        name: values[field] if is_number(values[field]) else None
        for (of, field), name in _SHOWN.items()
        if of == kind and field in values
    }


def _phase_of(kind: str) -> str:
    """The name of an evaluation on the display."""
    return "evaluating" if kind == "eval" else f"evaluating {kind}"


def _passed(every: int, before: int, now: int) -> bool:
    """Whether there is a multiple of `every` in (before, now]."""
    return now // every > before // every
