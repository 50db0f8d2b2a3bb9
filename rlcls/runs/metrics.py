"""Metrics of a run: metrics.jsonl with one JSON object per line, and scalars in TensorBoard and W&B.

A checkpoint stores `Metrics.position()`. Opening the metrics at that position removes later lines. A run that was
killed and resumed therefore has the same lines as one that was not, except for the clock fields. Lines may end in CRLF,
because some editors save them so.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlcls._errors import UserError, one_line
from rlcls.training.loop import UNITS

FILE = "metrics.jsonl"
CLOCK_FIELDS = ("seconds", "steps_per_second", "frames_per_second")
"""The fields that differ between two equal runs."""

# For each kind of line, the fields that plots use: numbers or null. Lines of diagnostics contain only such fields.
_NUMBERS = {
    "train": ("episode_return", "loss", "td_divergence", "clip_fraction"),
    "eval": ("return_mean", "return_std"),
    "episode": ("return", "length"),
}
# `lines`: the number of lines before the position. `step`: the largest count of the unit in any line. `rate_from`:
# unit, frames and seconds of the last train line, where the seconds include the pauses since then. `wandb`: the id of
# the W&B run.
_BEGINNING: Mapping[str, Any] = {
    "lines": 0,
    "seconds": 0.0,
    "step": -1,
    "rate_from": [0, 0, 0.0],
    "wandb": None,
}


class Metrics:
    """The open metrics of one run folder, which must exist, and the run's clock."""

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        unit: str = "agent_steps",
        tensorboard: bool,
        wandb: WandB | None = None,
        position: Mapping[str, Any] | None = None,
    ):
        """Opens the metrics and removes the lines after `position`, or all lines if it is None.

        Args:
          run_dir: the run folder.
          unit: the horizontal axis of scalars in TensorBoard and W&B.
          tensorboard: whether to also write scalars to run_dir/tensorboard.
          wandb: an open W&B run to which scalars are also written, and which the caller closes; or None.
          position: the result of `position` in the checkpoint from which the run continues.

        Raises:
          UserError: metrics.jsonl cannot be written, or has fewer lines than the checkpoint needs.
        """
        run_dir = Path(run_dir)
        self._path = run_dir / FILE
        position = position or _BEGINNING
        self._unit = unit
        self._step: int = position["step"]
        self._rate_from: list[Any] = list(position["rate_from"])
        self._wandb = wandb
        self._wandb_id = wandb.id if wandb else position["wandb"]
        self._tensorboard: _TensorBoard | None = None
        with self._writing():
            self._file = open(self._path, "a+b")  # noqa: SIM115
            self._file.seek(0)
            self._lines: int = position["lines"]
            for number in range(self._lines):
                if not self._file.readline().endswith(b"\n"):
                    self._file.close()
                    raise UserError(_too_short(self._path, number, self._lines))
            self._file.truncate(self._file.tell())
            if tensorboard:
                # Lines of one step can be before and after the position, so a point may appear twice, but none is lost.
                self._tensorboard = _TensorBoard(run_dir / "tensorboard", purge_step=self._step + 1)
        self._start = time.monotonic() - position["seconds"]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def _check_place(self) -> None:
        """Raises a UserError if the open file is no longer at its path, because its lines would be lost."""
        try:
            lies_there = os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            lies_there = False
        if not lies_there:
            raise UserError(
                f"cannot write to the run folder {self._path.parent}: its {FILE} was removed, moved or replaced during "
                "the run"
            )

    def seconds(self) -> float:
        """The time spent in the run, summed over its resumes."""
        return time.monotonic() - self._start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the block, such as an evaluation, from the rates in the next train line."""
        begun = self.seconds()
        try:
            yield
        finally:
            self._rate_from[2] += self.seconds() - begun

    def write(self, kind: str, counts: Mapping[str, int], /, **values: Any) -> dict[str, Any]:
        """Appends one line of `kind` ("train", "eval", "episode", "diagnostics").

        This method adds the clock fields. A train line also has the rates since the previous train line, without the
        pauses.

        Args:
          kind: the kind of the line.
          counts: the unit and other counts, such as frames, of the line.
          values: numbers, strings, None, or lists or arrays of these. NaN and infinities become null. A value overrides
            the count of the same name.

        Returns:
          The values in the line: Python numbers, strings, None and lists.

        Raises:
          UserError: the line cannot be written, for example because the disk is full or the run folder was removed.
        """
        seconds = self.seconds()
        values = {name: _plain(value) for name, value in values.items()}
        clock = {"seconds": round(seconds, 3)}
        step, frames = counts[self._unit], counts.get("frames")
        if kind == "train":
            step_before, frames_before, seconds_before = self._rate_from
            elapsed = max(seconds - seconds_before, 1e-9)
            clock["steps_per_second"] = round((step - step_before) / elapsed, 2)
            if frames is not None:
                clock["frames_per_second"] = round((frames - frames_before) / elapsed, 2)
            self._rate_from = [step, frames or 0, seconds]
        line = json.dumps({"kind": kind, **counts, **values, **clock}, allow_nan=False)
        self._step = max(self._step, step)
        scalars = {
            f"{kind}/{name}": value
            for name, value in (values | clock).items()
            if name not in counts and is_number(value)
        }
        with self._writing():
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            self._check_place()
            self._lines += 1
            if self._tensorboard:
                self._tensorboard.write(scalars, step)
        if self._wandb:
            self._wandb.write({**scalars, self._unit: step})
        return values

    def position(self) -> dict[str, Any]:
        """The position at which the metrics can continue, as JSON values. Calls fsync on the lines written so far.

        Raises:
          UserError: the lines cannot be written.
        """
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._check_place()
            if self._tensorboard:
                self._tensorboard.flush()
        return {
            "lines": self._lines,
            "seconds": self.seconds(),
            "step": self._step,
            "rate_from": list(self._rate_from),
            "wandb": self._wandb_id,
        }

    def close(self) -> None:
        """Closes the files. May be called twice."""
        with contextlib.suppress(OSError):  # a line that could not be written was reported by `write`
            self._file.close()
        with contextlib.suppress(OSError):
            if self._tensorboard:
                self._tensorboard.close()
        self._tensorboard = self._wandb = None


def read(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first, without an incomplete last line that a kill may leave.

    Raises:
      UserError: the folder has no metrics.jsonl, or a line before the last one is not valid.
    """
    path = Path(run_dir) / FILE
    lines = _split(path)
    rows = [_row(path, number, line) for number, line in enumerate(lines[:-1], start=1)]
    with contextlib.suppress(UserError):
        rows.append(_row(path, len(lines), lines[-1]))
    return rows


def check(run_dir: str | os.PathLike[str], position: Mapping[str, Any]) -> None:
    """Raises a UserError unless metrics.jsonl has all lines before a position and all of them are valid."""
    path, count = Path(run_dir) / FILE, position["lines"]
    if not path.exists():
        raise UserError(f"{path} is missing")
    lines = _split(path)
    if len(lines) <= count:
        raise UserError(_too_short(path, len(lines) - 1, count))
    for number, line in enumerate(lines[:count], start=1):
        _row(path, number, line)


def cut(run_dir: str | os.PathLike[str], counts: Mapping[str, int]) -> int:
    """Removes the first line that is later than `counts` or invalid, and all after it; returns how many are left."""
    path, kept = Path(run_dir) / FILE, []
    if not path.exists():
        return 0
    with contextlib.suppress(UserError):
        for number, line in enumerate(_split(path)[:-1], start=1):
            row = _row(path, number, line)
            if any(row.get(name, 0) > count for name, count in counts.items()):
                break
            kept.append(line)
    os.truncate(path, sum(len(line) + 1 for line in kept))
    return len(kept)


def is_position(position: object) -> bool:
    """Whether a value in a checkpoint is a position of this version's metrics."""
    return isinstance(position, Mapping) and _BEGINNING.keys() <= position.keys()


def check_values(kind: str, counts: Mapping[str, int], values: Mapping[str, Any]) -> None:
    """Raises a UserError if a line of an evaluator's values would not be valid.

    Args:
      kind: the kind of the line, which names the evaluator.
      counts: the counts of the line.
      values: the results of the evaluator.
    """
    reserved = values.keys() & {"kind", *CLOCK_FIELDS, *counts}
    if reserved:
        raise UserError(
            f"the evaluator {kind} returned {min(reserved)}, a name that every line of metrics already has"
        )
    for name in _NUMBERS.get(kind, ()):
        value = _plain(values.get(name))
        if value is not None and not is_number(value):
            raise UserError(f"the evaluator {kind} returned {name}={json.dumps(value)}; it must be a number")


def _too_short(path: Path, lines: int, expected: int) -> str:
    return f"{path} has {lines} lines, but the checkpoint needs {expected}"


def _split(path: Path) -> list[bytes]:
    """The lines of a file. The last one is empty or incomplete."""
    try:
        return path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent} is not a run folder: it has no {FILE}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: not a JSON object")
    step = next((name for name in UNITS if name in row), UNITS[0])
    kind = row.get("kind")
    if not isinstance(kind, str):
        raise UserError(f"{path}, line {number}: kind must be a text, not {json.dumps(kind)}")
    drawn = row.keys() - {"kind"} if kind == "diagnostics" else _NUMBERS.get(kind, ())
    wrong = [name for name in (step, "seconds") if not is_number(row.get(name))]
    wrong += [name for name in sorted(drawn) if row.get(name) is not None and not is_number(row[name])]
    if wrong:
        raise UserError(
            f"{path}, line {number}: {wrong[0]} must be a number, not {json.dumps(row.get(wrong[0]))}"
        )
    return row


def check_wandb(project: str) -> Any:
    """The module wandb, for runs in this project.

    Raises:
      UserError: wandb is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise UserError(f"logging.wandb={project}: wandb is not installed (pip install wandb)") from None


def same(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Whether two run folders have the same metrics, except for the clock fields."""
    first, second = (
        [{name: value for name, value in row.items() if name not in CLOCK_FIELDS} for row in read(run_dir)]
        for run_dir in (a, b)
    )
    return first == second


def _plain(value: Any) -> Any:
    """The value with arrays as lists, array scalars as Python numbers, and NaN and infinities as None."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _plain(value.tolist())


def is_number(value: Any) -> bool:
    """Whether a value is a number and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class _TensorBoard:
    """Writes scalars to a TensorBoard event file in the calling thread, so that a killed run loses none."""

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        older = list(folder.glob("events.*"))
        # The file name contains whole seconds. Without a suffix a quick resume would overwrite the previous file.
        self._writer = EventsWriter(str(folder / "events"), f".{len(older)}")
        self._event = Event
        if older:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))
        self._writer.flush()

    def write(self, scalars: dict[str, float], step: int) -> None:
        event = self._event(wall_time=time.time(), step=step)
        for tag, value in scalars.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._writer.write_event(event)
        self._writer.flush()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Writes scalars to a W&B run. W&B cannot remove points, so a point may appear twice after a resume.

    Args:
      run_dir: the run folder, which must exist.
      project: the W&B project.
      unit: the horizontal axis of scalars.
      run_id: the `id` of the W&B run to continue; None starts a new one.
      config: the run's configuration.

    Attributes:
      id: the id of the W&B run.

    Raises:
      UserError: wandb is not installed, or there is no account or network.
    """

    def __init__(
        self, run_dir: Path, project: str, *, unit: str, run_id: str | None, config: Mapping[str, Any]
    ):
        wandb = check_wandb(project)
        try:
            self._run = wandb.init(
                project=project,
                dir=str(run_dir),
                name=run_dir.name,
                id=run_id,
                resume="allow",
                config=dict(config),
            )
        except Exception as error:  # wandb's own errors: no account, no network, ...
            raise UserError(f"logging.wandb={project}: {one_line(error)}") from error
        self.id: str = self._run.id
        self._run.define_metric("*", step_metric=unit)

    def write(self, scalars: dict[str, float]) -> None:
        self._run.log(scalars)

    def close(self) -> None:
        self._run.finish()
