"""The folder in which one run lives: its configuration, the process that writes to it, and what it was made with."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from rlcls._errors import UserError

from .files import write_text
from .identity import difference

CONFIG, FACTS, LOCK = "config.yaml", "run.json", "lock"
# Versions that can change the bits of a run.
_PACKAGES = ("rlcls", "jax", "jaxlib", "flax", "optax", "numpy", "ale-py")
# Settings of JAX that can, too.
_JAX_SETTINGS = (
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_threefry_partitionable",
)


class RunFolder:
    """A run folder, locked by this process until `close`.

    Attributes:
      path: the folder.
      resumed: whether it held this run before.
      remarks: lines for the user on what differs from when the run began.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, environment: str, protocol: dict[str, Any]):
        """Makes the folder, or opens an existing one.

        Args:
          path: the folder.
          config: the whole configuration of the run, nested dictionaries of plain values.
          environment: its name.
          protocol: everything that decides what is played, JSON-able: a protocol's name alone may come to mean
            another protocol.

        Raises:
          UserError: the folder holds something else or another configuration, another process trains in it, or it
            cannot be written.
        """
        self.path = path
        try:
            self.resumed = self._is_run()
            before = read_config(self.path) if self.resumed else None
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            if before is not None:
                lines = difference(OmegaConf.to_container(before), config)  # type: ignore[arg-type]
                if lines:
                    raise UserError(f"{self.path} holds another configuration: {'; '.join(lines)}")
            self.remarks = self._record(facts() | {"environment": environment, "protocol": protocol})
            # The configuration comes last: without it the folder is no run yet.
            write_text(self.path / CONFIG, OmegaConf.to_yaml(config))
        except OSError as error:
            raise UserError(f"cannot write to the run folder {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Lets another process in."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _is_run(self) -> bool:
        if (self.path / CONFIG).is_file():
            return True
        # A process that was killed while it made the folder can have left these.
        unfinished = {FACTS, LOCK, ".run.partial.json", ".config.partial.yaml"}
        if self.path.exists() and not (
            self.path.is_dir() and {entry.name for entry in self.path.iterdir()} <= unfinished
        ):
            raise UserError(f"{self.path} exists and is not a run folder: it has no {CONFIG}")
        return False

    def _locked(self) -> TextIO:
        file = (self.path / LOCK).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"another process is training in {self.path}") from None
        except OSError as error:  # some network file systems have no locks
            print(
                f"note: {self.path} cannot be locked ({error.strerror}): see to it that no other process trains in it",
                file=sys.stderr,
            )
        return file

    def _record(self, now: dict[str, Any]) -> list[str]:
        path = self.path / FACTS
        if not path.exists():
            write_text(path, json.dumps(now, indent=1))
            return []
        then = read_facts(self.path)
        return [
            f"{name} was {then.get(name)} when this run began and is {now[name]}: results may differ in their last bits"
            for name in now
            if name != "git" and name in then and then[name] != now[name]
        ]


def read_config(run_dir: Path) -> DictConfig:
    """The configuration that a run folder holds.

    Raises:
      UserError: it is not a run folder.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no {CONFIG}")
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    # Other programs keep files of that name too.
    if not isinstance(config, DictConfig) or not {"choices", "training", "eval"} <= config.keys():
        raise UserError(f"{run_dir} is not a run folder: its {CONFIG} is not of a run")
    return config


def read_facts(run_dir: Path) -> dict[str, Any]:
    """The facts that run.json records; empty if it is missing or damaged."""
    try:
        return dict(json.loads((run_dir / FACTS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def facts() -> dict[str, Any]:
    """Versions, cores, device, JAX's settings and git revision: what a run's bits depend on besides its options."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "device": f"{device.platform}: {device.device_kind}",
        **{name: jax.config.values[name] for name in _JAX_SETTINGS},
        "XLA_FLAGS": " ".join(sorted(os.environ.get("XLA_FLAGS", "").split())) or None,
        "git": _git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # in an installation, a repository around it is somebody else's
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
