"""Draws learning curves: `python -m rlcls.plot runs/a runs/b out=comparison.png`."""

from __future__ import annotations

import sys

from rlcls._errors import UserError, command
from rlcls.cli.arguments import parse

_HELP = """Draws learning curves of runs.

usage: python -m rlcls.plot RUN_FOLDER [RUN_FOLDER ...] [out=FILE]

One run: its returns, loss and clip fraction, in the run folder's learning_curve.png.
Several: evaluation returns, a panel a game; runs that differ in the seed alone are one line, their mean, in
a band from the worst seed to the best.

out=FILE    where to draw the comparison, .png, .pdf or .svg; comparison.png if nothing is said"""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 2 for a mistake of the user's."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = parse(argv, ["out"], names=True)
    if arguments.help:
        print(_HELP)
        return 0
    if not arguments.names:
        raise UserError("name the run folders to draw, such as runs/*; --help says more")

    from rlcls.plotting.curves import compare, learning_curve

    out = arguments.options.get("out")
    if len(arguments.names) == 1 and out is None:
        path = learning_curve(arguments.names[0])
    else:
        path = compare(arguments.names, out or "comparison.png")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
