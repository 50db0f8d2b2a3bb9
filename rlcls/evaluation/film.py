"""Films an episode of an environment that has a twin in colour."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from rlcls.envs.base import HostEnv


def can_be_filmed(env: HostEnv) -> bool:
    """Whether the environment offers the twin that is filmed, by a method `render_twin()`."""
    return hasattr(env, "render_twin")


def film(path: Path, env: Any, *, seed: Integer[np.ndarray, "1"], actions: Sequence[Any]) -> float:
    """Plays `actions` from a reset with `seed` into an mp4, one frame for each agent step, at the console's speed.

    The twin's observations [1, F, height, width, 3] end with the frame that is shown, for `twin.frame_skip` / 60 s.

    Args:
      path: the mp4.
      env: the environment in which the actions were played.
      seed: that environment's seed.
      actions: those of one episode.

    Returns:
      The return of the episode.

    Raises:
      OSError: the file cannot be written.
    """
    twin = env.render_twin()
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
    """Yields a function that appends a frame."""
    import imageio.v2

    options: dict[str, Any] = {"fps": fps, "codec": "libx264", "macro_block_size": 2}
    path.touch()  # a path that cannot be written is an OSError here, and a page of ffmpeg's output later
    writer: Any = imageio.v2.get_writer(path, format="FFMPEG", **options)  # type: ignore[arg-type]
    with writer, warnings.catch_warnings():
        # JAX warns of forks; ffmpeg's is followed by an exec at once.
        warnings.filterwarnings("ignore", message=r"os\.fork", category=RuntimeWarning)
        # Three times the console's pixels, since players blur what they enlarge.
        yield lambda frame: writer.append_data(frame.repeat(3, axis=0).repeat(3, axis=1))
