"""The measurements of a run: one JSON object a line in metrics.jsonl, and its scalars in TensorBoard and W&B.

A checkpoint stores `Metrics.position()`. Opening with that position cuts the lines that were written after it, so a
run that was killed and resumed leaves the same lines as one that was not, except for the clock fields.
"""

import contextlib
import importlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlcls._errors import UserError

FILE = "metrics.jsonl"
CLOCK_FIELDS = ("seconds", "steps_per_second", "frames_per_second")
"""The fields in which two equal runs differ."""

# `step`: the largest count of the unit in any line. `rate_from`: unit, frames and seconds of the last train line.
_BEGINNING: Mapping[str, Any] = {
    "bytes": 0,
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
        wandb: str | None,
        position: Mapping[str, Any] | None = None,
    ):
        """Opens the metrics, cut to `position`; None empties them.

        Args:
          run_dir: the run folder.
          unit: the count that TensorBoard and W&B draw scalars over.
          tensorboard: whether to mirror scalars to run_dir/tensorboard.
          wandb: the W&B project to mirror scalars to, None for none.
          position: what `position` returned, from the checkpoint that the run goes on from.

        Raises:
          UserError: wandb is asked for and missing, or metrics.jsonl lacks lines that the checkpoint has.
        """
        run_dir = Path(run_dir)
        self._path = run_dir / FILE
        position = position or _BEGINNING
        self._unit = unit
        self._step: int = position["step"]
        self._rate_from: list[Any] = list(position["rate_from"])
        # A missing library raises before any line is cut.
        self._wandb = _WandB(run_dir, wandb, unit, position["wandb"]) if wandb else None
        self._tensorboard: _TensorBoard | None = None
        with self._writing():
            self._file = open(self._path, "ab")  # noqa: SIM115
            size = self._file.tell()
            kept = position["bytes"]
            if size < kept:
                self._file.close()
                raise UserError(f"{self._path} has {size} bytes where the checkpoint counts on {kept}")
            self._file.truncate(kept)
            self._file.seek(kept)
            if tensorboard:
                # Lines of one step can lie on both sides of the position: a point may appear twice, and none is lost.
                self._tensorboard = _TensorBoard(run_dir / "tensorboard", purge_step=self._step + 1)
        self._start = time.monotonic() - position["seconds"]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def seconds(self) -> float:
        """The age of the run: the time spent in it, summed over its resumes."""
        return time.monotonic() - self._start

    def write(self, kind: str, counts: Mapping[str, int], **values: Any) -> None:
        """Appends one line of `kind` ("train", "eval", "episode", "diagnostics").

        The clock fields are added here; a train line also carries the rates since the train line before it.

        Args:
          kind: the line's kind.
          counts: where the line stands: the unit and other counts, such as frames.
          values: numbers, strings, None, lists or arrays of them. NaN and infinities become null. A value overrides
            the count of the same name.

        Raises:
          UserError: the line cannot be written, because the disk is full for example.
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
            if name not in counts and _is_scalar(value)
        }
        with self._writing():
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            if self._tensorboard:
                self._tensorboard.write(scalars, step)
        if self._wandb:
            self._wandb.write({**scalars, self._unit: step})

    def position(self) -> dict[str, Any]:
        """From where the metrics go on, JSON-able; every line written so far is on the disk then.

        Raises:
          UserError: the lines cannot be brought to the disk.
        """
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._tensorboard:
                self._tensorboard.flush()
        return {
            "bytes": self._file.tell(),
            "seconds": self.seconds(),
            "step": self._step,
            "rate_from": list(self._rate_from),
            "wandb": self._wandb.id if self._wandb else None,
        }

    def close(self) -> None:
        """Closes the files and ends the W&B run. May be called twice."""
        with contextlib.suppress(OSError):  # a line that could not be written was reported by `write`
            self._file.close()
        with contextlib.suppress(OSError):
            if self._tensorboard:
                self._tensorboard.close()
        if self._wandb:
            self._wandb.close()
        self._tensorboard = self._wandb = None


def read(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first, without the torn line that a kill may leave.

    Raises:
      UserError: the folder has no metrics.jsonl, or a line other than the last is no JSON object.
    """
    path = Path(run_dir) / FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run_dir} is not a run folder: it has no {FILE}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not a JSON object") from None
    return rows


def check_wandb(project: str) -> Any:
    """The library that mirrors a run to this project.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise UserError(f"logging.wandb={project}: wandb is not installed (pip install wandb)") from None


def same(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Whether two run folders hold the same metrics but for the clock fields."""
    first, second = (
        [{name: value for name, value in row.items() if name not in CLOCK_FIELDS} for row in read(run_dir)]
        for run_dir in (a, b)
    )
    return first == second


def _plain(value: Any) -> Any:
    """`value` with arrays as lists, array scalars as Python numbers, and null for what JSON cannot say."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _plain(value.tolist())


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class _TensorBoard:
    """Scalars in a TensorBoard event file, written at once by the calling thread: a killed run loses none."""

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        older = list(folder.glob("events.*"))
        # The name holds whole seconds: without a suffix a quick resume would overwrite the file before it.
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


class _WandB:
    """Scalars in a W&B run. It cannot purge: after a resume a point may stand twice, with the same value."""

    def __init__(self, run_dir: Path, project: str, unit: str, run_id: str | None):
        wandb = check_wandb(project)
        try:
            self._run = wandb.init(
                project=project,
                dir=str(run_dir),
                name=run_dir.name,
                id=run_id,
                resume="allow",
                config=_config(run_dir),
            )
        except Exception as error:  # wandb's own errors: no account, no network, ...
            raise UserError(f"logging.wandb={project}: {str(error).splitlines()[0]}") from error
        self.id: str = self._run.id
        self._run.define_metric("*", step_metric=unit)

    def write(self, scalars: dict[str, float]) -> None:
        self._run.log(scalars)

    def close(self) -> None:
        self._run.finish()


def _config(run_dir: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    path = run_dir / "config.yaml"
    config = OmegaConf.load(path) if path.exists() else OmegaConf.create()
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
