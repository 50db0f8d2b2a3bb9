"""Plays evaluation episodes inside compiled programs, for environments that are pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32, PyTree

from rlcls._errors import UserError
from rlcls.envs.autoreset import Autoreset, Playing
from rlcls.envs.base import environment_seeds
from rlcls.envs.jax_vector import JaxVectorEnv
from rlcls.training import xla

_STEPS = 128  # vector steps per call, and so between two reports


class _Played(NamedTuple):
    """The environments, the number of episodes that each has finished, and returns and lengths [rounds, N]."""

    playing: Playing
    finished: Int32[Array, "n"]
    returns: Float32[Array, "r n"]
    lengths: Int32[Array, "r n"]


class CompiledEpisodes:
    """`rlcls.evaluation.evaluate` for a `JaxVectorEnv`: the same episodes, with many steps per call.

    Returns are summed in float32.

    Args:
      act: (acting, observations, key, number, step, epsilon) -> actions, a pure function.
      env: the environments.
      episodes: number of episodes, divided evenly among the environments.
    """

    def __init__(self, act: Callable[..., Array], env: JaxVectorEnv, episodes: int):
        n = env.num_envs
        self._episodes, self._num_envs, self._name = episodes, n, env.name
        quotas = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
        rounds = int(quotas.max())
        one = Autoreset(env.env, env.frame_stack)

        def begin(seeds: Array) -> _Played:
            playing = jax.vmap(lambda seed: one.begin(jax.random.key(seed)))(seeds)
            zeros = jnp.zeros((rounds, n))
            return _Played(playing, jnp.zeros(n, jnp.int32), zeros, zeros.astype(jnp.int32))

        def play(
            played: _Played, acting: PyTree, key: Array, number: Array, first: Array, epsilon: Array
        ) -> Any:
            def step(i: Array, played: _Played) -> _Played:
                actions = act(acting, played.playing.observation, key, number, first + i, epsilon)
                playing, outcome = jax.vmap(one.step)(played.playing, actions)
                counts = (played.finished < quotas) & ~outcome.starts
                current = jnp.minimum(played.finished, rounds - 1) == jnp.arange(rounds)[:, None]
                return _Played(
                    playing,
                    played.finished + (counts & (outcome.terminated | outcome.truncated)),
                    played.returns + jnp.where(current & counts, outcome.reward, 0.0),
                    played.lengths + (current & counts),
                )

            played = lax.fori_loop(0, _STEPS, step, played)
            return played, played.finished.sum()

        self._begin, self._play = jax.jit(begin), xla.jit(play, donate_argnums=0)

    def __call__(
        self,
        acting: PyTree,
        key: Array,
        number: int,
        epsilon: float,
        *,
        seed: Sequence[int],
        report: Callable[[int], object],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns and lengths, ordered by the number of the episode in its environment, then by environment."""
        played = self._begin(jax.device_put(environment_seeds(seed, self._num_envs)))
        step, finished = 0, 0
        while finished < self._episodes:
            arguments = jax.device_put((number, step, epsilon))
            played, done = self._play(played, acting, key, *arguments)
            step, finished = step + _STEPS, int(jax.device_get(done))
            report(finished)
        returns, lengths = jax.device_get((played.returns, played.lengths))
        if not np.isfinite(returns).all():
            raise UserError(f"evaluation in {self._name}: a reward is not finite")
        return returns[lengths > 0].astype(np.float64), lengths[lengths > 0].astype(np.int64)
