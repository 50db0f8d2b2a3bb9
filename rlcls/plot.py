"""Draws learning curves: `python -m rlcls.plot runs/a runs/b out=comparison.png`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlcls._errors import UserError, command, nearest
from rlcls.cli.arguments import folders, parse, whole_number

_OPTIONS = ("out", "axis", "smooth", "csv", "scores", "last")
_HELP = """Draws learning curves of runs.

usage: python -m rlcls.plot RUN_FOLDER [RUN_FOLDER ...] [name=value ...]

One run folder: its returns, loss, clip fraction and diagnostics, in its learning_curve.png.
Several run folders: evaluation returns, in one panel for each game. Runs that differ only in their seed are one line,
their mean, in its 95 % interval, or with fewer than three seeds in a band from the worst to the best. The line is
dashed where some seeds have ended. Of copies, which have one configuration and seed, the longest is drawn, and the
first of equally long ones.

With scores=UNIT, aggregates of all games instead: interquartile mean, median, mean and optimality gap of each setting
with 95 % intervals, and performance profiles. Every setting must have been run on every game.

scores=UNIT       the unit that games share: human or dqn, in which random play is 0 and that reference 1 (Atari); or a
                  setting, as python -m rlcls.compare names it, whose mean is 1
last=N            the score of a run is the mean of its last N evaluations; default: 1
out=FILE          draw a comparison into this .png, .pdf or .svg; default: comparison.png, or aggregates.png, in the
                  folder that holds the run folders
axis=agent_steps  the horizontal axis counts agent_steps or frames
csv=FILE          also write the numbers of the lines and bands of a comparison
smooth=N          each point of a line is the mean of the last N measurements; default: 1"""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 2 for a mistake of the user's."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = parse(argv, _OPTIONS, names=True)
    if arguments.help:
        print(_HELP)
        return 0
    if not arguments.names:
        raise UserError("name the run folders to draw, such as runs/*; --help says more")

    from rlcls.plotting import AXES, compare, learning_curve

    options = arguments.options
    axis, smooth = options.get("axis", AXES[0]), options.get("smooth", "1")
    if axis not in AXES:
        raise UserError(f"unknown axis {axis!r}{nearest(axis, AXES)}")
    if not (smooth.isdecimal() and int(smooth) > 0):
        raise UserError(f"smooth={smooth} must be a whole number of at least 1")
    style: dict[str, Any] = {"axis": axis, "smooth": int(smooth)}
    names = folders(arguments.names)
    names = names if len(names) == 1 else _measured(names)
    if "scores" in options:
        path = _aggregates(names, options)
    elif "last" in options:
        raise UserError("last= needs scores=; smooth=N averages the points of curves")
    elif len(names) == 1 and not {"out", "csv"} & options.keys():
        path = learning_curve(names[0], **style)
    else:
        path = compare(
            names, options.get("out") or _beside(names, "comparison.png"), csv=options.get("csv"), **style
        )
    print(path)
    return 0


def _measured(run_dirs: Sequence[str]) -> list[str]:
    """The runs that have measured something; a note names each of the others."""
    from rlcls.runs.folder import CONFIG
    from rlcls.runs.metrics import FILE

    unmeasured = [each for each in run_dirs if Path(each, CONFIG).is_file() and not Path(each, FILE).exists()]
    for each in unmeasured:
        print(f"note: {each} has no {FILE} yet and is left out", file=sys.stderr)
    if len(unmeasured) == len(run_dirs):
        raise UserError(f"no run has a {FILE} yet")
    return [each for each in run_dirs if each not in unmeasured]


def _aggregates(run_dirs: Sequence[str], options: dict[str, str]) -> Path:
    from rlcls.plotting import aggregates, load_each, of_games, together, without_copies

    for name in ("axis", "smooth"):
        if name in options:
            raise UserError(f"{name}= applies to curves, and scores= draws none")
    last = whole_number(options, "last", 1, 10**6) or 1
    by_game = of_games(without_copies(run for name in run_dirs for run in load_each(name)), last)
    if not by_game:
        raise UserError(f"no run has {last} evaluations yet")
    unit = options["scores"]
    out = options.get("out") or _beside(run_dirs, "aggregates.png")
    return aggregates(together(by_game, unit), out, unit=f"{unit} = 1", csv=options.get("csv"))


def _beside(run_dirs: Sequence[str], name: str) -> Path:
    """A file of that name in the nearest folder that holds all run folders, relative where they all are."""
    parent = os.path.commonpath([os.path.dirname(os.path.abspath(run_dir)) for run_dir in run_dirs])
    if not any(map(os.path.isabs, run_dirs)):
        parent = os.path.relpath(parent)
    return Path(parent) / name


if __name__ == "__main__":
    sys.exit(main())
