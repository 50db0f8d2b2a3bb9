"""Plays environments and records what they show, in parts: a killed process repeats the part at which it stood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Integer, Shaped

from rlcls._errors import UserError
from rlcls.envs.base import HostEnv, Observations, check_finite

from .recording import Writer
from .rows import Layout
from .streams import Streams

Act = Callable[[Observations, Bool[np.ndarray, "N"], int, int], Shaped[np.ndarray, "N *action"]]
"""(observations, which of them begin an episode, part, step of the part) -> one action for each environment.

The result depends only on the calls since the part began, so a part that is played again has the same actions.
"""

Tick = Callable[[int, int], object]
"""(rows, episodes): what has been played."""

_PART = 100_000  # rows after which no episode of a part begins


def layout_of(env: HostEnv) -> Layout:
    """The layout of what is recorded in an environment.

    Raises:
      UserError: its observations or actions are no columns of a recording.
    """
    spec, observation = env.spec, env.spec.observation
    if not isinstance(observation, jax.ShapeDtypeStruct):
        raise UserError(f"{env.name} cannot be recorded: its observations are several arrays")
    shape = observation.shape[1:] if env.frame_stack else observation.shape
    options: dict[str, Any] = {
        "game": env.name,
        "frame_shape": shape,
        "frame_dtype": np.dtype(observation.dtype).name,
        "stack": env.frame_stack,
    }
    if spec.action_range is not None:
        low, high = (tuple(float(value) for value in bound) for bound in spec.action_range)
        return Layout(**options, action_low=low, action_high=high)
    if spec.action.shape:
        raise UserError(f"{env.name} cannot be recorded: its actions are {spec.action.shape[0]} tokens")
    return Layout(**options, num_actions=spec.num_actions)


def play(
    writer: Writer,
    env: HostEnv,
    act: Act,
    seeds: Callable[[int], Integer[np.ndarray, "N"]],
    *,
    steps: int | None = None,
    episodes: int | None = None,
    tick: Tick = lambda rows, episodes: None,
) -> None:
    """Appends what is played to a writer, from where its last commit stands; the caller finishes the writer.

    Each part begins with new seeds. In its first 100,000 rows every environment plays one episode after another, and
    then finishes the episode that it has begun, so no episode is lost or chosen for its length. If `seeds` is a
    function of the part, the rows are the same however often the process was killed.

    Args:
      writer: its layout is `layout_of(env)`.
      env: N environments.
      act: chooses the actions.
      seeds: the environments' seeds for a part, by its number.
      steps: rows of the recording. The episodes under way at the end are cut.
      episodes: whole episodes. Exactly one of `steps` and `episodes` is given.
      tick: called after each vector step with the rows and the finished episodes so far.
    """
    if (steps is None) == (episodes is None):
        raise ValueError(f"give steps or episodes, not {steps} and {episodes}")
    while not writer.complete:
        rows = writer.manifest.rows
        part, finished = writer.progress or (0, 0)
        if rows == steps or finished == episodes:
            return
        most_rows = None if steps is None else steps - rows
        most_episodes = None if episodes is None else episodes - finished
        new_episodes = 0
        for new_rows, new_episodes in _part(writer, env, act, seeds(part), part, most_rows, most_episodes):
            tick(rows + new_rows, finished + new_episodes)
        writer.commit((part + 1, finished + new_episodes))


def _part(
    writer: Writer,
    env: HostEnv,
    act: Act,
    seeds: Integer[np.ndarray, "N"],
    part: int,
    most_rows: int | None,
    most_episodes: int | None,
) -> Iterator[tuple[int, int]]:
    """Plays and records one part; yields its rows and finished episodes so far."""
    observations, _ = env.reset(seed=seeds)
    check_finite(env.name, 0, observations)
    recorders = [Streams(writer, 1) for _ in range(env.num_envs)]
    starts, playing = np.ones(env.num_envs, bool), np.zeros(env.num_envs, bool)
    rows = begun = step = 0
    while rows != most_rows:
        for i in np.flatnonzero(starts):
            playing[i] = rows < _PART and begun != most_episodes
            begun += int(playing[i])
        if not playing.any():
            break
        actions = act(observations, starts, part, step)
        next_observations, rewards, terminated, _, info = env.step(actions)
        check_finite(env.name, step + 1, next_observations, rewards)
        for i in np.flatnonzero(playing)[: None if most_rows is None else most_rows - rows]:
            one = slice(i, i + 1)
            recorders[i].add(observations[one], actions[one], rewards[one], terminated[one], starts[one])
            rows += 1
        observations, starts, step = next_observations, np.array(info["episode_start"]), step + 1
        yield rows, begun - int((playing & ~starts).sum())
    for recorder in recorders:
        recorder.close()
