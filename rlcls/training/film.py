"""Films an episode of an Atari game."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from rlcls._errors import UserError
from rlcls.envs.atari import Protocol, rgb_twin


def film(
    path: Path, game: str, protocol: Protocol, *, seed: Integer[np.ndarray, "1"], actions: Sequence[int]
) -> float:
    """Plays `actions` from a reset with `seed` into an mp4, a frame an agent step, at the console's speed.

    Args:
      path: of the mp4; missing folders are made.
      game: its name.
      protocol: what was played.
      seed: of the environment that played it.
      actions: of one episode.

    Returns:
      The return of the episode.

    Raises:
      UserError: the file cannot be written.
    """
    twin = rgb_twin(game, protocol)
    total = 0.0
    # The console shows 60 frames a second.
    with contextlib.closing(twin), _mp4(path, fps=60 / twin.frame_skip) as add:
        observations, _ = twin.reset(seed=seed)
        add(observations[0, -1])
        for action in actions:
            observations, rewards, *_ = twin.step(np.array([action]))
            add(observations[0, -1])
            total += float(rewards[0])
    return total


@contextlib.contextmanager
def _mp4(path: Path, fps: float) -> Iterator[Callable[[UInt8[np.ndarray, "height width 3"]], None]]:
    """Gives a function that appends a frame. The file appears when it is whole."""
    import imageio.v2

    partial = path.with_name(f".{path.name}.partial.mp4")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        options: dict[str, Any] = {"fps": fps, "codec": "libx264", "macro_block_size": 2}
        writer: Any = imageio.v2.get_writer(partial, format="FFMPEG", **options)  # type: ignore[arg-type]
        with writer, warnings.catch_warnings():
            # JAX warns of forks; ffmpeg's is followed by an exec at once.
            warnings.filterwarnings("ignore", message=r"os\.fork", category=RuntimeWarning)
            # Thrice the console's pixels: players smooth what they enlarge.
            yield lambda frame: writer.append_data(frame.repeat(3, axis=0).repeat(3, axis=1))
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
