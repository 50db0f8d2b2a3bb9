"""Lists the Atari games and the protocols under which they are played: `python -m rlcls.games`."""

from __future__ import annotations

import sys

from rlcls._errors import UserError, command
from rlcls.cli.arguments import parse

_HELP = """Lists the Atari games and the protocols under which they are played.

usage: python -m rlcls.games [text ...]

text    lists only the games whose names contain it"""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 2 for a mistake of the user's."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = parse(argv, (), names=True)
    if arguments.help:
        print(_HELP)
        return 0
    from rlcls.envs.atari import PROTOCOLS, games

    texts = [text.lower() for text in arguments.names]
    listed = [name for name in games() if not texts or any(text in name.lower() for text in texts)]
    if not listed:
        raise UserError(f"no game has {' or '.join(map(repr, arguments.names))} in its name")
    print("games (game=):")
    print("\n".join(f"  {name}" for name in listed))
    print("\nprotocols (env.protocol=):")
    print("\n".join(f"  {protocol.describe()}" for protocol in PROTOCOLS.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
