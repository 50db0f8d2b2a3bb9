"""Lists the Atari games and the protocols under which they are played: `python -m rlcls.games`."""

from __future__ import annotations

import sys

from rlcls._errors import command
from rlcls.cli.arguments import parse

_HELP = """Lists the Atari games and the protocols under which they are played.

usage: python -m rlcls.games"""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 2 for a mistake of the user's."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    if parse(argv, ()).help:
        print(_HELP)
        return 0
    from rlcls.envs.atari import PROTOCOLS, games

    print("games (game=):")
    print("\n".join(f"  {name}" for name in games()))
    print("\nprotocols (env.protocol=):")
    print("\n".join(f"  {protocol.describe()}" for protocol in PROTOCOLS.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
