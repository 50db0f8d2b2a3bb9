"""The command `python -m rlcls.launch`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from rlcls._errors import UserError, command

from . import local, sky, slurm, tpu
from .jobs import Job, jobs_of

_ABOUT = """Starts training on several processes or machines.

usage: python -m rlcls.launch WHERE [--option ...] -- ARGUMENT_OF_TRAIN ...

  local   processes on this machine, started again when one dies
  slurm   a cluster's queue
  tpu     a TPU slice of Google Cloud, by queued resources
  sky     TPUs or GPUs of any cloud, by SkyPilot

python -m rlcls.launch WHERE --help lists the options. What follows -- are the arguments of python -m rlcls.train; with
--multirun among them, each run of the sweep is a job of its own. Every command is checked before anything is started.
--dry-run prints the files and commands instead."""
_PLACES: dict[str, Callable[[list[str], list[Job]], int]] = {
    "local": local.main,
    "slurm": slurm.main,
    "tpu": tpu.main,
    "sky": sky.main,
}


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: the run's, or 2 for a mistake of the user's."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h"):
        print(_ABOUT)
        return 0
    where, *rest = argv
    if where not in _PLACES:
        raise UserError(f"unknown place {where!r}: expected one of {', '.join(_PLACES)}")
    place = rest.index("--") if "--" in rest else len(rest)
    options, arguments = rest[:place], rest[place + 1 :]
    asks_for_help = bool({"--help", "-h"} & set(options))
    try:
        return _PLACES[where](options, [] if asks_for_help else jobs_of(arguments))
    except (SystemExit, argparse.ArgumentError) as error:  # argparse has printed its line
        return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 2


if __name__ == "__main__":
    sys.exit(main())
