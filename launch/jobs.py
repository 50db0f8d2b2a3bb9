"""The jobs that a launcher starts. Their arguments are checked before anything is started."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from rlcls._errors import UserError
from rlcls.distributed import DIED

STALE_NAMES = (
    "MEGASCALE_COORDINATOR_ADDRESS",
    "MEGASCALE_NUM_SLICES",
    "MEGASCALE_PORT",
    "MEGASCALE_SLICE_ID",
    "COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_BIND_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
"""Variables that another program may have left. They would make JAX look for processes that do not exist."""
DEATHS = (DIED, *(128 + number for number in (6, 7, 9, 11)))
"""Exit codes after which all processes start again: another process's death, SIGABRT, SIGBUS, SIGKILL and SIGSEGV."""
PYTHON = "~/rlcls-env/bin/python"
"""The interpreter that `install` makes on a cloud machine."""


class Job(NamedTuple):
    """One run.

    Attributes:
      arguments: the arguments of rlcls.train.
      name: the job's name in a queue or a cloud: letters, digits and dashes.
    """

    arguments: list[str]
    name: str

    @property
    def text(self) -> str:
        """The arguments, quoted for a shell."""
        return shlex.join(self.arguments)


def jobs_of(arguments: list[str]) -> list[Job]:
    """The job of these arguments of rlcls.train; with --multirun among them, a job for each run of the sweep.

    Raises:
      UserError: there are no arguments, or rlcls.train refuses them.
    """
    from rlcls.cli.compose import compose, expand, split_flags

    if not arguments:
        raise UserError(
            "say what to train: -- and the arguments of rlcls.train, such as -- agent=dqn game=Pong"
        )
    flags, rest = split_flags(arguments)
    if flags - {"--multirun"}:
        raise UserError(f"a run that is launched does not take {sorted(flags - {'--multirun'})[0]}")
    commands = expand(rest) if "--multirun" in flags else [rest]
    for each in commands:
        compose(each)
    return [
        Job(each, _name(each, number if len(commands) > 1 else None)) for number, each in enumerate(commands)
    ]


def parser(where: str, about: str) -> argparse.ArgumentParser:
    """A parser for the options of a launcher, which already has --dry-run."""
    made = argparse.ArgumentParser(prog=f"python -m rlcls.launch {where}", description=about, add_help=True)
    made.add_argument("--dry-run", action="store_true", help="print files and commands, and do nothing")
    return made


def install(extra: str) -> str:
    """A shell command that installs the checkout in which it runs, in an environment of Python 3.12."""
    return (
        "export PATH=$HOME/.local/bin:$PATH && "
        "{ command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh; } && "
        "uv venv -q --allow-existing --python 3.12 ~/rlcls-env && "
        f"uv pip install -q --python {PYTHON} -e '.[atari,{extra}]'"
    )


def write(files: dict[str, str]) -> None:
    """Writes the text of each path, and makes its folder."""
    for path, text in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)


def run_each(commands: list[list[str]]) -> int:
    """Runs commands one after another until one fails; returns its exit code, or 0.

    Raises:
      UserError: there is no such command.
    """
    for each in commands:
        try:
            code = subprocess.run(each, check=False).returncode
        except FileNotFoundError:
            raise UserError(f"{each[0]} is not on PATH; --dry-run prints its arguments") from None
        if code:
            return 128 - code if code < 0 else code
    return 0


def without_stale(environment: dict[str, str]) -> dict[str, str]:
    """The environment without `STALE_NAMES` and all other MEGASCALE variables."""
    return {
        name: value
        for name, value in environment.items()
        if name not in STALE_NAMES and not name.startswith("MEGASCALE_")
    }


def show(files: dict[str, str], commands: list[list[str]]) -> int:
    """Prints files and commands, for --dry-run."""
    for path, text in files.items():
        print(f"--- {path}\n{text.rstrip()}")
    for each in commands:
        print(f"$ {shlex.join(each)}")
    sys.stdout.flush()
    return 0


def _name(arguments: list[str], number: int | None) -> str:
    words = [each.partition("=")[2] for each in arguments if re.match(r"(agent|loss|game|env)=", each)]
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(["rlcls", *words]).lower()).strip("-")[:40].strip("-")
    return text if number is None else f"{text}-{number}"
