"""Plays environments and records the steps in parts. A killed process repeats the part that was interrupted."""

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
"""(observations, which of them start an episode, part, step of the part) -> one action for each environment.

The result depends only on the calls since the start of the part, so a repeated part has the same actions.
"""

Tick = Callable[[int, int], object]
"""(rows, episodes): called with the numbers that have been played."""

_PART = 100_000  # rows after which a part starts no more episodes


def layout_of(env: HostEnv) -> Layout:
    """The layout of a recording of this environment.

    Raises:
      UserError: a recording cannot hold its observations or actions.
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
    """Plays and appends rows to a writer, from its last commit on. The caller finishes the writer.

    Each part has new seeds. During its first 100,000 rows every environment plays one episode after another, and then
    finishes its current episode, so that episodes are neither lost nor selected by length. If `seeds` is a function of
    the part, the rows do not depend on how often the process was killed.

    Args:
      writer: a writer with the layout `layout_of(env)`.
      env: N environments.
      act: chooses the actions.
      seeds: number of a part -> the environments' seeds.
      steps: number of rows of the recording. Unfinished episodes at the end are cut.
      episodes: number of whole episodes. Exactly one of `steps` and `episodes` is given.
      tick: called after each vector step with the numbers of rows and of finished episodes so far.
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
    for recorder, unfinished in zip(recorders, playing, strict=True):
        recorder.close(ended=not unfinished)
