"""All commands under one name: `rlcls train game=Pong` is `python -m rlcls.train game=Pong`."""

from __future__ import annotations

import runpy
import sys

from rlcls._errors import UserError, command, nearest

_COMMANDS = {
    "train": "train an agent, or go on with a run",
    "evaluate": "play episodes with trained agents",
    "plot": "draw the learning curves of runs",
    "compare": "say which runs differ, by how much and how surely",
    "collect": "record a policy that plays, or the replay of a run",
    "datasets": "inspect, convert, verify, export and fetch recorded experience",
    "launch": "start training on several processes, in a queue or in a cloud",
    "compile": "say what an update needs on devices that are not here",
    "games": "list the Atari games and their protocols",
}
_HELP = "\n".join(
    [
        "usage: rlcls COMMAND [argument ...]",
        "",
        *(f"  {name:10}{about}" for name, about in _COMMANDS.items()),
        "",
        "rlcls COMMAND --help says more about a command, rlcls --version prints the version.",
    ]
)


def main() -> int:
    """The console script. Returns its exit code: the command's, or 2 for a mistake of the user's."""
    return command(_command, None)


def _command(argv: list[str]) -> int:
    name, *arguments = argv or ["--help"]
    if name in ("--help", "-h"):
        print(_HELP)
    elif name not in _COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, _COMMANDS)}")
    else:
        sys.argv[1:] = arguments
        runpy.run_module(f"rlcls.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
