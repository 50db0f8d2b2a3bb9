"""Looks at recorded experience: `python -m rlcls.datasets inspect data=dqn_replay data.path=FOLDER game=Pong`."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from rlcls._errors import UserError, command, nearest

_HELP = """Recorded experience.

usage: python -m rlcls.datasets inspect data=FORM data.path=FOLDER [game=GAME] [name=value ...] [out=PICTURE]
       python -m rlcls.datasets convert data=FORM data.path=FOLDER [game=GAME] [name=value ...] out=FOLDER
       python -m rlcls.datasets verify RECORDING [RECORDING ...]

inspect    prints counts, returns and a histogram of the actions, and draws frames into out=, frames.png if
           nothing is said
convert    writes a recording of published files; if it is killed, the same command goes on
verify     reads recordings whole, and names every damaged chunk

FORM is one of dqn_replay, rl_unplugged, minari, recording; the options are those of rlcls.train."""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 2 for a mistake of the user's or for damage."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    actions = {"inspect": _inspect, "convert": _convert, "verify": _verify}
    if not argv or {"--help", "-h"} & set(argv):
        print(_HELP)
        return 0
    if argv[0] not in actions:
        raise UserError(f"unknown command {argv[0]!r}{nearest(argv[0], actions)}")
    return actions[argv[0]](argv[1:])


def _verify(argv: list[str]) -> int:
    from .recording import verify

    if not argv:
        raise UserError("name the recordings to verify; --help says more")
    damaged = False
    for name in argv:
        lines = verify(name)
        damaged |= bool(lines)
        print("\n".join(lines) if lines else f"{name} is whole", flush=True)
    return 2 if damaged else 0


def _convert(argv: list[str]) -> int:
    from .choices import CONVERSIONS

    out, config = _composed(argv)
    if out is None:
        raise UserError("say where to write the recording: out=FOLDER")
    form = config["choices"]["data"]
    if form not in CONVERSIONS:
        raise UserError(f"data={form} is nothing to convert ({', '.join(CONVERSIONS)})")
    takes = inspect.signature(CONVERSIONS[form]).parameters
    try:
        conversion = CONVERSIONS[form](
            **{key: value for key, value in config["data"].items() if key in takes}
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"data: {error}") from error
    recording = conversion.write(out)
    print(f"{out}: {recording.columns.num_rows:,} rows, {recording.identity[:16]}")
    return 0


def _inspect(argv: list[str]) -> int:
    from rlcls.cli import build

    from .summary import describe, draw

    out, config = _composed(argv)
    data: Any = build.dataset(config)
    games = getattr(data, "games", None) or {"": data}
    for game in games.values():
        if not hasattr(game, "recording"):
            raise UserError(f"{type(data).__name__} is not one of the forms that inspect knows")
        print("\n".join(describe(game)))
    recordings = [game.recording for game in games.values()]
    path = draw(recordings, Path(out or "frames.png"))
    print(path if path else "the observations are no images, so there is no picture")
    return 0


def _composed(argv: list[str]) -> tuple[str | None, Any]:
    """The value of out=, and the configuration that the other arguments ask for."""
    from rlcls.cli.compose import compose

    outs = [argument.partition("=")[2] for argument in argv if argument.startswith("out=")]
    config = compose([argument for argument in argv if not argument.startswith("out=")])
    if "data" not in config:
        raise UserError("say which data: data=dqn_replay, rl_unplugged, minari or recording")
    return (outs[-1] if outs else None), config


if __name__ == "__main__":
    sys.exit(main())
