"""Commands for recorded experience: `python -m rlcls.datasets inspect data=dqn_replay data.path=FOLDER game=Pong`."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from rlcls._errors import UserError, command, nearest

_MB = 10**6
_HELP = """Recorded experience.

usage: python -m rlcls.datasets inspect data=FORM data.path=FOLDER [game=GAME] [name=value ...] [out=PICTURE]
       python -m rlcls.datasets convert data=FORM data.path=FOLDER [game=GAME] [name=value ...] out=FOLDER
       python -m rlcls.datasets verify RECORDING [RECORDING ...]
       python -m rlcls.datasets export format=minari|dqn_replay data=FORM data.path=FOLDER [name=value ...] out=FOLDER
       python -m rlcls.datasets fetch data=dqn_replay|rl_unplugged data.path=FOLDER game=GAME [data.runs=[1,...]]
                                [data.checkpoints=[0,...]] [mirrors=[URL,...]] [sha256=FILE]

inspect    prints counts, returns and a histogram of the actions, and draws frames into out= (default: frames.png)
convert    converts published files to a recording; after a kill, the same command continues
verify     reads whole recordings, and names every damaged chunk
export     writes a recording as a Minari dataset (HDF5) in out=, whose name ends in -v0 by Minari's convention, or as
           DQN Replay files in out=/GAME/1
fetch      downloads published files into data.path=. It prints their sizes first, continues interrupted downloads, and
           checks lengths and checksums. mirrors= are URLs of folders with the games, which are tried in turn instead of
           Google's. sha256= is a list in the format of sha256sum, with names such as
           Pong/1/replay_logs/add_count_ckpt.0.gz

FORM is one of dqn_replay, rl_unplugged, minari, recording; the options are those of rlcls.train."""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 2 for a mistake of the user or damaged data."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    actions = {
        "inspect": _inspect,
        "convert": _convert,
        "verify": _verify,
        "export": _export,
        "fetch": _fetch,
    }
    if not argv or {"--help", "-h"} & set(argv):
        print(_HELP)
        return 0
    if argv[0] not in actions:
        raise UserError(f"unknown command {argv[0]!r}{nearest(argv[0], actions)}")
    if argv[0] in ("convert", "export", "fetch"):  # these continue if their output cannot be written
        from rlcls.runs.output import unread_is_dropped

        with unread_is_dropped():
            return actions[argv[0]](argv[1:])
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

    own, config = _composed(argv, "out")
    if "out" not in own:
        raise UserError("give the folder of the recording: out=FOLDER")
    form = config["choices"]["data"]
    if form not in CONVERSIONS:
        raise UserError(f"data={form} cannot be converted ({', '.join(CONVERSIONS)})")
    takes = inspect.signature(CONVERSIONS[form]).parameters
    try:
        conversion = CONVERSIONS[form](
            **{key: value for key, value in config["data"].items() if key in takes}
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"data: {error}") from error
    recording = conversion.write(own["out"])
    print(f"{own['out']}: {recording.columns.num_rows:,} rows, {recording.identity[:16]}")
    return 0


def _export(argv: list[str]) -> int:
    from rlcls.cli import build
    from rlcls.runs import Progress

    from .export import EXPORTS, import_h5py

    own, config = _composed(argv, "out", "format")
    if own.get("format") not in EXPORTS:
        named = f"unknown format {own['format']!r}" if "format" in own else "give the format: format="
        raise UserError(f"{named}{nearest(own.get('format', ''), EXPORTS)}")
    if "out" not in own:
        raise UserError("give the output folder: out=FOLDER")
    if own["format"] == "minari":
        import_h5py()
    data: Any = build.dataset(config)
    if not hasattr(data, "recording"):
        raise UserError(f"export does not support {type(data).__name__}, or it has several games")
    with Progress(data.recording.columns.num_rows, unit="rows") as progress:
        notes = EXPORTS[own["format"]](data.recording, Path(own["out"]), progress.update)
        progress.update(data.recording.columns.num_rows)
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    print(own["out"])
    return 0


def _fetch(argv: list[str]) -> int:
    from rlcls.runs import Progress

    from .fetch import PUBLISHED, fetch, missing, read_sha256, size_text, wanted

    own, config = _composed(argv, "mirrors", "sha256")
    form, data = config["choices"]["data"], config["data"]
    if form not in PUBLISHED:
        raise UserError(f"data={form} cannot be fetched ({', '.join(PUBLISHED)})")
    if not data["path"]:
        raise UserError("give the folder of the files: data.path=FOLDER")
    mirrors = [each.strip() for each in own.get("mirrors", PUBLISHED[form].root).strip("[]").split(",")]
    folder = Path(data["path"])
    files = wanted(
        form,
        list(data["games"] or [data["game"]]),
        data["runs"],
        data["checkpoints"],
        mirrors,
        lambda file: print(
            f"{'?' if file.size is None else size_text(file.size):>10}  {file.name}", flush=True
        ),
    )
    total = sum(file.size or 0 for file in files)
    sums = read_sha256(Path(own["sha256"]), files) if "sha256" in own else None
    left = missing(files, folder)
    print(
        f"{size_text(total):>10}  in {len(files)} files, of which {size_text(left)} are missing", flush=True
    )
    with Progress(-(-total // _MB), start=(total - left) // _MB, unit="MB") as progress:
        unchecked = fetch(files, folder, mirrors, sums, lambda size: progress.update(-(-size // _MB)))
    if unchecked:
        print(f"note: the server sent no usable checksum for {len(unchecked)} files, such as {unchecked[0]}; their "
              "lengths are correct", file=sys.stderr)  # fmt: skip
    print(folder)
    return 0


def _inspect(argv: list[str]) -> int:
    from rlcls.cli import build

    from .summary import describe, draw

    own, config = _composed(argv, "out")
    data: Any = build.dataset(config)
    games = getattr(data, "games", None) or {"": data}
    for game in games.values():
        if not hasattr(game, "recording"):
            raise UserError(f"inspect does not support {type(data).__name__}")
        print("\n".join(describe(game)))
    recordings = [game.recording for game in games.values()]
    path = draw(recordings, Path(own.get("out", "frames.png")))
    print(path if path else "the observations are not images, so no frames are drawn")
    return 0


def _composed(argv: list[str], *names: str) -> tuple[dict[str, str], Any]:
    """The command's own options `names`, and the configuration from the other arguments."""
    from rlcls.cli.arguments import parse
    from rlcls.cli.compose import compose

    own = [argument for argument in argv if argument.partition("=")[0] in names]
    config = compose([argument for argument in argv if argument not in own])
    if "data" not in config:
        raise UserError("give the kind of data: data=dqn_replay, rl_unplugged, minari or recording")
    return parse(own, names).options, config


if __name__ == "__main__":
    sys.exit(main())
