"""Starts the runs of a sweep: one after another on this machine, or by one of Hydra's launchers."""

from __future__ import annotations

import functools
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from rlcls._errors import UserError, install, nearest, one_line
from rlcls.runs.signals import collected

from .compose import configs

_OPTION = "hydra/launcher"
# A run has a folder of its own, so Hydra writes only what a cluster's queue needs.
_QUIET = [
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=.",
    "hydra.sweep.subdir=.",
    "hydra.mode=MULTIRUN",
]


def split_launcher(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that choose and configure a launcher, and the rest.

    >>> split_launcher(["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
    (['hydra/launcher=joblib', 'hydra.launcher.n_jobs=2'], ['seed=0,1'])
    """
    launcher = [each for each in argv if each.startswith((f"{_OPTION}=", "hydra.launcher."))]
    return launcher, [each for each in argv if each not in launcher]


def run_each(commands: list[list[str]]) -> int:
    """Starts each run in a process of its own, one after another, until one of them fails or a signal comes.

    Args:
      commands: the arguments of each run.

    Returns:
      The exit code.
    """
    for number, overrides in enumerate(commands, 1):
        print(f"[{number}/{len(commands)}] python -m rlcls.train {shlex.join(overrides)}", flush=True)
        process = subprocess.Popen([sys.executable, "-m", "rlcls.train", *overrides])
        # A terminal sends Ctrl-C to the run, too. Other signals come to this process alone, which passes them on.
        passed_on: dict[int, Callable[[], object]] = {
            number: functools.partial(process.send_signal, number)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        }
        with collected(passed_on) as received:
            code = process.wait()
        if code or received:
            return 128 - code if code < 0 else code or 128 + received[0]
    return 0


def launch(commands: list[list[str]], launcher: list[str]) -> int:
    """Hands the runs to a launcher of Hydra, such as joblib (several at once) or submitit_slurm (a cluster's queue).

    Args:
      commands: the arguments of each run; each has been checked.
      launcher: the arguments that choose and configure the launcher.

    Returns:
      The exit code: 0, or the first one that is not 0.

    Raises:
      UserError: the launcher is not installed, or does not take its options.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import HydraContext

    name = next((each.partition("=")[2] for each in launcher if each.startswith(f"{_OPTION}=")), "basic")
    with configs():
        known = sorted(
            key.removesuffix(".yaml")
            for key in ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
        )
        if name not in known:
            raise UserError(
                f"unknown launcher {name!r}{nearest(name, known)}; "
                f"{install('sweep')} brings joblib and submitit"
            )
        try:
            config = hydra.compose("config", overrides=[*_QUIET, *launcher], return_hydra_config=True)
            context = HydraContext(
                config_loader=GlobalHydra.instance().config_loader(), callbacks=_callbacks()
            )
            made = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=_task, config=config
            )
            logging.disable(logging.INFO)
            results = made.launch(commands, initial_job_idx=0)
        except HydraException as error:
            raise UserError(f"{_OPTION}={name}: {one_line(error)}") from error
    return next((code for code in (result.return_value for result in results) if code), 0)


def _callbacks() -> Any:
    from hydra._internal.callbacks import Callbacks

    return Callbacks()


def _task(config: Any) -> int:
    """One run, with the overrides that the launcher composed `config` from."""
    from hydra.core.hydra_config import HydraConfig

    command = [sys.executable, "-m", "rlcls.train", *HydraConfig.get().overrides.task]
    return subprocess.run(command, check=False).returncode
