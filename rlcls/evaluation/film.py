"""Films episodes of an environment that has a twin in colour."""

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


def film(
    path: Path, env: Any, *, seeds: Integer[np.ndarray, "episodes"], actions: Sequence[Sequence[Any]]
) -> list[float]:
    """Plays episodes one after another into an mp4, one frame for each agent step, at the console's speed.

    Of several episodes, each stands still at its end for half a second. The twin's observations
    [1, F, height, width, 3] end with the frame that is shown, for `twin.frame_skip` / 60 s.

    Args:
      path: the mp4.
      env: the environment in which the actions were played.
      seeds: that environment's seed before each of the episodes.
      actions: those of each episode.

    Returns:
      The return of each episode.

    Raises:
      OSError: the file cannot be written.
    """
    twin = env.render_twin()
    returns = []
    # The console shows 60 frames a second.
    with contextlib.closing(twin), _mp4(path, fps=60 / twin.frame_skip) as add:
        for i, episode in enumerate(actions):
            observations, _ = twin.reset(seed=seeds[i : i + 1])
            add(observations[0, -1])
            returns.append(0.0)
            for action in episode:
                observations, rewards, *_ = twin.step(np.array([action]))
                add(observations[0, -1])
                returns[-1] += float(rewards[0])
            for _ in range(30 // twin.frame_skip if len(actions) > 1 else 0):
                add(observations[0, -1])
    return returns


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
