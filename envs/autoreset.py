"""Next-step autoreset of a `JaxEnv`, as pure functions of one environment."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Key, PyTree, Shaped

from .base import JaxEnv


class Playing(NamedTuple):
    """An environment between two steps.

    Attributes:
      state: the state of the `JaxEnv`.
      observation: the current observation. With a history, the last observations of the episode, with zeros before the
        first.
      over: whether the episode has ended, so that the next step starts a new one.
      key: the random key made from the environment's last seed.
      steps: number of resets and steps since that seed.
    """

    state: PyTree[Array]
    observation: Shaped[Array, "*observation"]
    over: Bool[Array, ""]
    key: Key[Array, ""]
    steps: Int32[Array, ""]


class Outcome(NamedTuple):
    """The results of a step besides the observation. If `starts`, the step ignored its action and began an episode."""

    reward: Array
    terminated: Array
    truncated: Array
    starts: Array


class Autoreset:
    """Steps a `JaxEnv` with next-step autoreset, as `HostEnv` does.

    The random numbers of an environment's k-th step since its last seed come from fold_in(key, k).

    Args:
      env: the environment.
      history: with w above 0, an observation is the last w observations of the episode, with zeros before the first.
    """

    def __init__(self, env: JaxEnv, history: int = 0):
        self.env, self.history = env, history

    def begin(self, key: Key[Array, ""]) -> Playing:
        """An environment at the start of its first episode. `key` is made from its seed."""
        return self._fresh(key, jnp.zeros((), jnp.int32))

    def again(self, playing: Playing) -> Playing:
        """The environment at the start of a new episode, with the same key."""
        return self._fresh(playing.key, playing.steps)

    def step(self, playing: Playing, action: Any) -> tuple[Playing, Outcome]:
        """One step. After the end of an episode it ignores the action and starts a new one."""
        key = jax.random.fold_in(playing.key, playing.steps)
        first_state, first = self.env.reset(key)
        state, observation, reward, terminated, truncated = self.env.step(playing.state, action, key)
        seen = jnp.concatenate([playing.observation[1:], observation[None]]) if self.history else observation
        starts = playing.over
        new = Playing(
            select(starts, first_state, state),
            jnp.where(starts, self._first(first), seen),
            ~starts & (terminated | truncated),
            playing.key,
            playing.steps + 1,
        )
        return new, Outcome(jnp.where(starts, 0.0, reward), ~starts & terminated, ~starts & truncated, starts)

    def _fresh(self, key: Array, count: Array) -> Playing:
        state, observation = self.env.reset(jax.random.fold_in(key, count))
        return Playing(state, self._first(observation), jnp.zeros((), bool), key, count + 1)

    def _first(self, observation: Array) -> Array:
        if not self.history:
            return observation
        empty = jnp.zeros((self.history - 1, *observation.shape), observation.dtype)
        return jnp.concatenate([empty, observation[None]])


def select(mask: Array, new: Any, old: Any) -> Any:
    """`new` where the mask is True, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(mask, x, y), new, old)
