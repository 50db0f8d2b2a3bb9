"""The published Atari episodes of RL Unplugged (Gulcehre et al. 2020).

    PATH/GAME/run_R-000KK-of-00050      the GZIP TFRecord of checkpoint KK, one tf.train.Example for each episode

Each Example has T `observations` (PNG, 84 x 84 grey), `actions`, `unclipped_rewards` and `discounts`. Only the
observation of its last step is used. If the last discount is 0, this observation is terminal, because discounts are
stored one step later than the rewards that they belong to.

Source: tensorflow_datasets, rl_unplugged/atari_utils.py.
"""

from __future__ import annotations

import collections
import functools
import gzip
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlcls._errors import UserError, install

from . import tfrecord
from .atari_games import NUM_ACTIONS, game_folder
from .conversion import Conversion, Part, reading, sizes
from .dqn_replay import check_fraction
from .rows import BEGINS, CONTINUES, Layout, Rows


def conversion(
    path: str | Path | None,
    game: str,
    runs: Sequence[int] | None = None,
    checkpoints: Sequence[int] | None = None,
    fraction: float = 1.0,
) -> Conversion:
    """The first `fraction` of the episodes of each checkpoint, at least one.

    Args:
      path: the folder with the games.
      game: such as "Pong".
      runs: numbers of the runs; None means all.
      checkpoints: numbers of the checkpoints of each run; None means all.
      fraction: above 0, at most 1.

    Raises:
      ValueError: `fraction` is out of range.
      UserError: a file is missing or empty, or the folder has files of two versions.
    """
    check_fraction(fraction)
    folder = game_folder(path, game)
    shards: dict[int, set[int]] = collections.defaultdict(set)
    for entry in folder.iterdir():
        if match := re.fullmatch(r"run_(\d+)-\d{5}-of-(\d{5})", entry.name):
            shards[int(match[1])].add(int(match[2]))
    if not shards:
        raise UserError(f"{folder} has no run_R-000KK-of-00050")
    parts, files = [], []
    for run in runs or sorted(shards):
        if len(shards[run]) != 1:
            counts = " and ".join(f"{count:05d}" for count in sorted(shards[run]))
            raise UserError(
                f"{folder} has files of run {run} of {counts} checkpoints"
                if counts
                else f"{folder}/run_{run}-* is missing"
            )
        (count,) = shards[run]
        for number in range(count) if checkpoints is None else checkpoints:
            shard = folder / checkpoint_file(run, number, count)
            files += sizes(folder, [shard])
            name = f"{game}, run {run}, checkpoint {number}"
            parts.append(Part(name, functools.partial(_read, shard, fraction)))
    source = {"format": "RL Unplugged", "game": game, "fraction": fraction, "files": files}
    layout = Layout(game=game, frame_shape=(84, 84), stack=4, num_actions=NUM_ACTIONS[game])
    return Conversion(folder, layout, source, parts)


def checkpoint_file(run: int, number: int, count: int = 50) -> str:
    """The name of the file of a checkpoint in a game's folder, for a run with `count` checkpoints."""
    return f"run_{run}-{number:05d}-of-{count:05d}"


def _read(path: Path, fraction: float) -> Iterator[Rows]:
    episodes = sum(1 for _ in _records(path))  # checks the whole file
    if not episodes:
        raise UserError(f"{path} has no episodes")
    wanted = max(1, int(episodes * fraction))
    for number, data in zip(range(wanted), _records(path), strict=False):
        with reading(path):
            rows = _episode(tfrecord.example(data), number)
        yield rows


def _records(path: Path) -> Iterator[bytes]:
    with reading(path), gzip.open(path) as file:
        yield from tfrecord.records(file)


def _episode(features: dict[str, Any], number: int) -> Rows:
    names = ("observations", "actions", "unclipped_rewards", "discounts")
    missing = [name for name in names if name not in features]
    if missing:
        raise ValueError(f"episode {number} has no {missing[0]}, but {', '.join(sorted(features))}")
    pictures, actions, rewards, discounts = (features[name] for name in names)
    lengths = {name: len(features[name]) for name in names}
    if len(set(lengths.values())) != 1 or not len(actions):
        raise ValueError(f"the lengths of episode {number} differ: {lengths}")
    count = len(actions)
    terminals, starts = np.zeros(count, bool), np.full(count, CONTINUES, np.uint8)
    terminals[-2:-1] = discounts[-1] == 0
    starts[0] = BEGINS
    frames = np.stack([picture(data) for data in pictures])
    return Rows(frames, actions.astype(np.int32), rewards.astype(np.float32), terminals, starts)


def picture(data: bytes) -> np.ndarray:
    """The pixels of a PNG or JPEG: uint8 [height, width], or [height, width, 3].

    Raises:
      ValueError: the data are damaged.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(f"images need Pillow: {install('data')} ({error})") from None
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"an image cannot be decoded ({error})") from error
