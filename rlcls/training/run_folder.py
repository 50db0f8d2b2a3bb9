"""The folder in which one run lives: whose it is, who writes to it, and what it was made with."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from rlcls._errors import UserError

from . import config as configuration

CONFIG, FACTS, LOCK = "config.yaml", "run.json", "lock"
# What can change the bits of a run.
_PACKAGES = ("rlcls", "jax", "jaxlib", "flax", "optax", "numpy", "ale-py")


class RunFolder:
    """A run folder, locked by this process until `close`.

    Attributes:
      path: of the folder.
      resumed: whether it held this run before.
      remarks: lines on what differs from when the run began, for the user.
    """

    def __init__(self, config: DictConfig, protocol: dict[str, Any] | None = None):
        """Makes the folder of `config`, or opens the one that is there.

        Args:
          config: of the run.
          protocol: all that the environment's protocol decides, JSON-able: its name alone may come to mean another.

        Raises:
          UserError: it holds something else or another configuration, another process trains in it, or it cannot be
            written.
        """
        self.path = where(config)
        try:
            self.resumed = self._is_run()
            if self.resumed:
                read_config(self.path)  # of something else, it is left as it is
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            if self.resumed:
                self._check(config)
            # The configuration comes last: without it the folder is no run yet.
            self.remarks = self._record(facts() | {"protocol": protocol})
            _write_whole(self.path / CONFIG, OmegaConf.to_yaml(config))
        except OSError as error:
            raise UserError(f"cannot write to the run folder {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Lets another process in."""
        self._lock.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _is_run(self) -> bool:
        if (self.path / CONFIG).is_file():
            return True
        known = {
            FACTS,
            LOCK,
            f".{FACTS}.partial",
            f".{CONFIG}.partial",
        }  # of a process killed while it made the folder
        if self.path.exists() and not (
            self.path.is_dir() and {entry.name for entry in self.path.iterdir()} <= known
        ):
            raise UserError(f"{self.path} is there and is not a run folder: it has no {CONFIG}")
        return False

    def _locked(self) -> Any:
        file = (self.path / LOCK).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"another process is training in {self.path}") from None
        return file

    def _check(self, config: DictConfig) -> None:
        there = read_config(self.path)
        lines = configuration.difference(there, config)
        if lines:
            raise UserError(f"{self.path} holds another configuration: {'; '.join(lines)}")

    def _record(self, now: dict[str, Any]) -> list[str]:
        path = self.path / FACTS
        if not path.exists():
            _write_whole(path, json.dumps(now, indent=1))
            return []
        then = json.loads(path.read_text())
        return [
            f"{name} was {then.get(name)} when this run began and is {now[name]}: it will not be the same bits"
            for name in now
            if name != "git" and then.get(name) != now[name]
        ]


def where(config: DictConfig) -> Path:
    """The folder of a configuration: `run_dir`, or runs/<agent>-<loss>-<game>-s<seed>-<identity>."""
    if config.run_dir:
        return Path(config.run_dir)
    chosen = config.choices
    game = str(config.game).replace("/", "-")
    name = f"{chosen.agent}-{chosen.loss}-{game}-s{config.seed}-{configuration.identity(config)}"
    return Path("runs") / name


def read_config(run_dir: Path) -> DictConfig:
    """The configuration that a run folder holds.

    Raises:
      UserError: it is no run folder.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no {CONFIG}")
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    # Many a project keeps a file of that name.
    if not isinstance(config, DictConfig) or not {"choices", "training", "eval"} <= config.keys():
        raise UserError(f"{run_dir} is not a run folder: its {CONFIG} is not of a run")
    return config


def facts() -> dict[str, Any]:
    """Versions, cores, device and git revision: what a run's bits depend on beside its configuration."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "device": f"{device.platform}: {device.device_kind}",
        "git": _git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed: a repository around the environment is somebody else's
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
