"""Plays whole episodes and measures their returns."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium.vector
import jax
import numpy as np
from jaxtyping import Float64, Int64, Integer, PyTree, UInt32

from rlcls.agents.base import Agent
from rlcls.envs.base import HostEnv, Observations, check_finite, environment_seeds
from rlcls.envs.jax_vector import JaxVectorEnv
from rlcls.training import xla

from .compiled import CompiledEpisodes
from .evaluator import Tick
from .scores import normalised

Act = Callable[[Observations, int], Integer[np.ndarray, "N"]]
"""(observations, step) -> one action for each environment. Steps are numbered from 0."""

_MOST_ENVS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The episodes of an evaluation.

    Attributes:
      returns: sums of raw rewards, undiscounted.
      lengths: numbers of agent steps.
    """

    returns: Float64[np.ndarray, "episodes"]
    lengths: Int64[np.ndarray, "episodes"]

    def place(self, episode: int, num_envs: int) -> tuple[int, int]:
        """The environment that played an episode, and the number of its steps before that, including resets."""
        round_, env = divmod(episode, num_envs)
        return env, int(self.lengths[env:episode:num_envs].sum()) + round_

    def summary(self) -> dict[str, Any]:
        """Values for the metrics: return_mean, return_std (population), returns, length_mean."""
        return {
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "returns": self.returns.tolist(),
            "length_mean": float(self.lengths.mean()),
        }


class EpisodeEvaluator:
    """Plays whole episodes in `env.evaluation(...)`: an `rlcls.evaluation.Evaluator`.

    The episodes are a function of (seed, number, acting policy). There is one environment for each episode, up to 32.
    They step together, so the longest episode determines the time of an evaluation.

    Args:
      agent: the agent, whose `act` plays.
      env: the training environment, whose `evaluation` is played.
      seed: the run's seed.
      episodes: episodes per evaluation.
      epsilon: probability of a random action; None means the environment's `evaluation_epsilon`.
      data: the training dataset or None. Its `behaviour_returns`, if it has them, normalise the score.

    Attributes:
      episodes: episodes per evaluation.
      epsilon: probability of a random action.

    Raises:
      ValueError: an option is out of range.
    """

    def __init__(
        self,
        agent: Agent[Any],
        env: HostEnv,
        *,
        seed: int = 0,
        episodes: int = 10,
        epsilon: float | None = None,
        data: Any = None,
    ):
        if episodes < 1:
            raise ValueError(f"episodes must be at least 1, not {episodes}")
        epsilon = env.evaluation_epsilon if epsilon is None else epsilon
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be between 0 and 1, not {epsilon}")
        self.episodes, self.epsilon = episodes, float(epsilon)
        self._training_env, self._seed = env, seed
        self._behaviour = getattr(data, "behaviour_returns", {}).get(env.name)
        (self._key,) = xla.keys(seed, xla.Use.EVALUATION)

        def act(acting: PyTree, observations: Any, key: Any, number: Any, step: Any, epsilon: Any) -> Any:
            step_key = jax.random.fold_in(jax.random.fold_in(key, number), step)
            return agent.act(acting, observations, step_key, epsilon)

        self._act, self._pure_act = xla.jit(act), act

    def with_seed(self, seed: int) -> EpisodeEvaluator:
        """This evaluator with another seed. Both use the same environments and programs."""
        _ = self.env, self._compiled
        other = copy.copy(self)
        other._seed = seed
        (other._key,) = xla.keys(seed, xla.Use.EVALUATION)
        return other

    @functools.cached_property
    def env(self) -> HostEnv:
        """The evaluation environment, which is made at its first use."""
        return self._training_env.evaluation(min(self.episodes, _MOST_ENVS))

    @functools.cached_property
    def _compiled(self) -> CompiledEpisodes | None:
        """Plays environments that are pure functions, many steps per call; None for other environments."""
        if not isinstance(self.env, JaxVectorEnv):
            return None
        return CompiledEpisodes(self._pure_act, self.env, self.episodes)

    def seeds(self, number: int) -> UInt32[np.ndarray, "num_envs"]:
        """The seeds of the environments in the evaluation at `Loop.number == number`."""
        return environment_seeds(self._seeds_at(number), self.env.num_envs)

    def _seeds_at(self, number: int) -> list[int]:
        return [self._seed, xla.Use.EVALUATION, number]

    def __call__(self, acting: PyTree, number: int, tick: Tick) -> dict[str, Any]:
        """The summary of `play`, and for an Atari game the normalised mean return of `rlcls.evaluation.scores`."""
        summary = self.play(acting, number, tick).summary()
        return summary | self.normalised(summary["return_mean"])

    def normalised(self, score: float) -> dict[str, float]:
        """The normalised scores of a mean return that exist for this game; see `rlcls.evaluation.scores`."""
        return normalised(self._training_env.name, score, self._behaviour)

    def play(
        self, acting: PyTree, number: int, tick: Tick, record: Callable[[np.ndarray], object] | None = None
    ) -> Evaluation:
        """Plays the episodes of one evaluation.

        Args:
          acting: the argument of the agent's `act`.
          number: `Loop.number`, which determines the seeds.
          tick: called after every step, or every call of a compiled program, with the number of finished episodes and
            the number of all episodes.
          record: called with the actions [N] of every step.
        """
        if self._compiled and record is None:
            returns, lengths = self._compiled(
                acting,
                self._key,
                number,
                self.epsilon,
                seed=self._seeds_at(number),
                report=lambda done: tick(done, self.episodes),
            )
            return Evaluation(returns, lengths)

        def act(observations: Observations, step: int) -> np.ndarray:
            arguments = jax.device_put((number, step, self.epsilon))
            seen = jax.device_put(observations)
            actions = np.array(jax.device_get(self._act(acting, seen, self._key, *arguments)))
            if record:
                record(actions)
            return actions

        return evaluate(
            act,
            self.env,
            episodes=self.episodes,
            seed=self._seeds_at(number),
            report=lambda done: tick(done, self.episodes),
        )

    def close(self) -> None:
        """Closes the evaluation environment, if it was made."""
        if "env" in self.__dict__:
            self.env.close()


def evaluate(
    act: Act,
    env: HostEnv | gymnasium.vector.VectorEnv,
    *,
    episodes: int,
    seed: int | Sequence[int],
    report: Callable[[int], object] | None = None,
) -> Evaluation:
    """Plays `episodes` episodes from a reset.

    The episodes are divided evenly among the environments beforehand, because taking the first `episodes` that end
    would prefer short ones. Terminations and truncations (a time limit) both end an episode.

    Args:
      act: the policy. It also gets the rows of environments that have played all their episodes, where its actions have
        no effect on the result.
      env: N environments that set `info["episode_start"]`.
      episodes: at least 1.
      seed: the argument of `environment_seeds`. The result is a function of it if `act` is a function of its arguments.
      report: called after every step with the number of finished episodes.

    Returns:
      The episodes, ordered by the number of the episode in its environment, then by environment.

    Raises:
      ValueError: `episodes` is below 1.
      UserError: a reward or an observation is not finite.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, not {episodes}")
    num_envs, name = env.num_envs, getattr(env, "name", type(env).__name__)
    quotas = np.full(num_envs, episodes // num_envs) + (np.arange(num_envs) < episodes % num_envs)
    rounds = quotas.max()
    # One row for each environment's k-th episode.
    returns, lengths = np.zeros((rounds, num_envs)), np.zeros((rounds, num_envs), np.int64)
    played = np.zeros(num_envs, np.int64)
    rows = np.arange(num_envs)

    observations, _ = env.reset(seed=environment_seeds(seed, num_envs))  # type: ignore[arg-type]
    step = 0
    while (played < quotas).any():
        actions = act(observations, step)
        observations, rewards, terminated, truncated, info = env.step(actions)
        step += 1
        check_finite(f"evaluation in {name}", step, observations, rewards)
        counts = (played < quotas) & ~info["episode_start"]
        current = np.minimum(played, rounds - 1), rows
        returns[current] += np.where(counts, rewards, 0.0)
        lengths[current] += counts
        played += counts & (terminated | truncated)
        if report:
            report(int(played.sum()))
    begun = lengths > 0
    return Evaluation(returns[begun], lengths[begun])
