"""The run folder, which holds the configuration, the lock, and the versions and settings of one run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlcls._errors import UserError, nearest, one_line
from rlcls.files import is_foreign, write_text

from .identity import difference, plain

CONFIG, FACTS, LOCK = "config.yaml", "run.json", "lock"
_REMEDY = "the command that began the run prints its contents, with --config"
_FACTS_REMEDY = "remove it, and the next training in this folder writes it again"
# Groups of options in the configuration of every run.
_GROUPS = ("choices", "agent", "loss", "backbone", "env", "training", "eval")
# Versions that can change the bits of a run.
_PACKAGES = ("rlcls", "jax", "jaxlib", "flax", "optax", "numpy", "ale-py")
# Settings of JAX that can change the bits of a run.
_JAX_SETTINGS = (
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_threefry_partitionable",
)


class RunFolder:
    """A run folder, which this process locks until `close`. `record` makes a new folder a run folder.

    Attributes:
      path: the folder.
      resumed: whether the folder already contained this run.
      remarks: lines for the user about facts that have changed since the run began.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, environment: str, protocol: dict[str, Any]):
        """Makes the folder, or opens an existing one.

        Args:
          path: the folder.
          config: the whole configuration of the run, as nested dictionaries of plain values.
          environment: the environment's name.
          protocol: the rules of the environment, as JSON values. The name of a protocol does not suffice, because its
            definition can change.

        Raises:
          UserError: the folder has other contents, another configuration or damaged files, another process trains in
            it, or it cannot be written.
        """
        self.path, self._config = path, config
        self._facts = facts() | {"environment": environment, "protocol": protocol}
        try:
            # Configuration files are UTF-8, and messages are one line.
            if not str(path).isprintable():
                raise UserError(
                    f"the run folder {str(path)!r} has characters that cannot be printed; choose another"
                )
            self.resumed = self._is_run()
            before = read_config(self.path) if self.resumed else None
            self._is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            if before is not None:
                lines = difference(OmegaConf.to_container(before), config)  # type: ignore[arg-type]
                if lines:
                    raise UserError(f"{self.path} holds another configuration: {'; '.join(lines)}")
            self.remarks = self._differences()
        except OSError as error:
            raise UserError(f"cannot write to the run folder {self.path}: {error.strerror}") from error

    def record(self) -> None:
        """Writes the configuration, and for a new run the facts that its results depend on.

        Raises:
          UserError: a file cannot be written.
        """
        if not (self.path / FACTS).exists():
            write_text(self.path / FACTS, json.dumps(self._facts, indent=1))
        # The configuration is written last, because a folder without it is not a run folder.
        write_text(self.path / CONFIG, OmegaConf.to_yaml(self._config))
        self._is_new = False

    def set_aside(self, names: Iterable[str]) -> Path:
        """Moves files and folders, in this order, into a new folder `set_aside_<n>` with a copy of the configuration.

        Args:
          names: their paths in the run folder, which they keep in the new folder. Missing ones are skipped.

        Returns:
          The new folder.

        Raises:
          UserError: a file cannot be moved.
        """
        number = 1
        while (place := self.path / f"set_aside_{number}").exists():
            number += 1
        try:
            place.mkdir()
            shutil.copyfile(self.path / CONFIG, place / CONFIG)
            for name in names:
                if (self.path / name).exists():
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    (self.path / name).rename(place / name)
        except OSError as error:
            raise UserError(f"cannot set files aside in {place}: {error.strerror}") from error
        return place

    def close(self) -> None:
        """Releases the lock. Removes a new folder without `record`, unless it contains other files."""
        if self._is_new:
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink()
                self.path.rmdir()
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _is_run(self) -> bool:
        if (self.path / CONFIG).is_file():
            return True
        # A process that ended while it made the folder leaves these files.
        unfinished = (FACTS, LOCK, "wandb")
        if self.path.exists() and not (
            self.path.is_dir()
            and all(entry.name in unfinished or is_foreign(entry.name) for entry in self.path.iterdir())
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
                f"note: {self.path} cannot be locked ({error.strerror}): make sure that no other process trains in it",
                file=sys.stderr,
            )
        return file

    def _differences(self) -> list[str]:
        """One line for each fact that has changed since the run began."""
        now, then = self._facts, read_facts(self.path)
        if not then:
            return []
        return [
            f"{name} was {then.get(name)} when this run began and is {now[name]}: results may differ in their last bits"
            for name in now
            if name != "git" and name in then and then[name] != now[name]
        ]


def read_config(run_dir: Path) -> DictConfig:
    """The configuration in a run folder.

    Raises:
      UserError: it is not a run folder, or the configuration is damaged.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no {CONFIG}{_nearby(run_dir)}")
    try:
        config = OmegaConf.load(path)
        values = OmegaConf.to_container(config, resolve=True)
    except YAMLError as error:
        mark = getattr(error, "context_mark", None) or getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"cannot read {path}: {one_line(error)}{line}; {_REMEDY}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key}: {one_line(error)}; {_REMEDY}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}; {_REMEDY}") from error
    if values in (None, {}):
        raise UserError(f"{path} is empty; {_REMEDY}")
    # Other programs also have files of this name.
    if not isinstance(config, DictConfig) or not isinstance(values, dict) or not set(_GROUPS) & values.keys():
        raise UserError(f"{run_dir} is not a run folder: its {CONFIG} is not that of a run")
    for name in _GROUPS:
        if not isinstance(values.get(name), dict):
            what = (
                "is missing"
                if name not in values
                else f"must be a group of options, not {plain(values[name])}"
            )
            raise UserError(f"{path}: {name} {what}; {_REMEDY}")
    if type(values.get("seed")) is not int:
        raise UserError(f"{path}: seed must be a whole number, not {plain(values.get('seed'))}; {_REMEDY}")
    return config


def _nearby(run_dir: Path) -> str:
    """The end of an error message about a folder that is not a run: run folders inside it, or with similar names."""

    def runs_in(folder: Path) -> list[str]:
        try:
            return sorted(each.parent.name for each in folder.glob(f"*/{CONFIG}"))
        except OSError:
            return []

    if inside := runs_in(run_dir):
        return f"; it contains run folders, such as {run_dir / inside[0]}"
    return nearest(run_dir.name, runs_in(run_dir.parent), most=3)


def read_facts(run_dir: Path) -> dict[str, Any]:
    """The facts in run.json; empty if the file is missing.

    Raises:
      UserError: it is damaged.
    """
    path = run_dir / FACTS
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}; {_FACTS_REMEDY}") from error
    if not isinstance(facts, dict):
        raise UserError(f"cannot read {path}: it is not a JSON object; {_FACTS_REMEDY}")
    return facts


def facts() -> dict[str, Any]:
    """Versions, cores, device, JAX's settings and git revision, which can change the bits of a run."""
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
    if not (root / ".git").exists():  # a repository around an installed package is not this project's
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
