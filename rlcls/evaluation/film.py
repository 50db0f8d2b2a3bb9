"""Films an episode of an environment that has a `render_twin`."""

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
    """Whether the environment has the method `render_twin()`."""
    return hasattr(env, "render_twin")


def film(
    path: Path, env: Any, *, seed: Integer[np.ndarray, "1"], actions: Sequence[Any], skip: int = 0
) -> float:
    """Plays `actions` in `env.render_twin()` and writes an mp4, with one frame for each agent step.

    The twin's observations are images [1, F, height, width, 3], newest last. Its attribute `fps` is the number of agent
    steps per second of the task.

    Args:
      path: the mp4.
      env: the environment in which the actions were played.
      seed: the seed of that environment's last reset.
      actions: all actions since that reset, up to the end of the filmed episode.
      skip: the number of actions before the filmed episode.

    Returns:
      The return of the filmed episode.

    Raises:
      OSError: the file cannot be written.
    """
    twin = env.render_twin()
    total = 0.0
    with contextlib.closing(twin), _mp4(path, fps=twin.fps) as add:
        observations, _ = twin.reset(seed=seed)
        for step, action in enumerate(actions):
            if step >= skip:
                add(observations[0, -1])
            observations, rewards, *_ = twin.step(np.array([action]))
            if step >= skip:
                total += float(rewards[0])
        add(observations[0, -1])
    return total


@contextlib.contextmanager
def _mp4(path: Path, fps: float) -> Iterator[Callable[[UInt8[np.ndarray, "height width 3"]], None]]:
    """Opens an mp4; yields a function that appends a frame."""
    import imageio.v2

    options: dict[str, Any] = {"fps": fps, "codec": "libx264", "macro_block_size": 2}
    path.touch()  # raises an OSError for a path that cannot be written, before ffmpeg prints a page of output
    writer: Any = imageio.v2.get_writer(path, format="FFMPEG", **options)  # type: ignore[arg-type]
    with writer, warnings.catch_warnings():
        # JAX warns about forks, but imageio's fork is followed by an exec of ffmpeg.
        warnings.filterwarnings("ignore", message=r"os\.fork", category=RuntimeWarning)
        # Frames are enlarged three times, because players blur small ones.
        yield lambda frame: writer.append_data(frame.repeat(3, axis=0).repeat(3, axis=1))
