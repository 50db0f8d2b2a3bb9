"""Plays whole episodes and tells how they went."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium.vector
import numpy as np
from jaxtyping import Float64, Int64, Integer, Shaped, UInt32

Act = Callable[[Shaped[np.ndarray, "N ..."], int], Integer[np.ndarray, "N"]]
"""(observations, step) -> one action per environment; the step counts from 0."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The episodes of an evaluation: what each returned (raw, undiscounted) and its agent steps."""

    returns: Float64[np.ndarray, "episodes"]
    lengths: Int64[np.ndarray, "episodes"]

    def summary(self) -> dict[str, Any]:
        """What a line of metrics holds: return_mean, return_std (of the population), returns, length_mean."""
        return {
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "returns": self.returns.tolist(),
            "length_mean": float(self.lengths.mean()),
        }


def evaluate(
    act: Act,
    env: gymnasium.vector.VectorEnv,
    *,
    episodes: int,
    seed: int | Sequence[int],
    max_steps: int | None = None,
    report: Callable[[int], object] | None = None,
) -> Evaluation:
    """Plays `episodes` episodes from a reset.

    How many each environment plays is fixed beforehand, as even as can be: the first `episodes` to end would
    be the short ones. Terminations and truncations (the frame limit) both end an episode.

    Args:
      act: the policy; it also gets the rows of environments that have played theirs, and its actions there
        are without effect on the result.
      env: resets an environment at the step after its episode's end, ignoring that step's action, and says so
        in info["episode_start"].
      episodes: at least 1.
      seed: of the environments; the result is a function of it, if `act` is one of its arguments.
      max_steps: vector steps at which to stop. Episodes under way then count as they stand and those not
        begun are left out: for a quick look, not for a result.
      report: told after every step how many episodes are played.

    Returns:
      The episodes, by their number in their environment and then by environment.

    Raises:
      ValueError: `episodes` or `max_steps` is below 1.
    """
    if episodes < 1 or (max_steps is not None and max_steps < 1):
        raise ValueError(f"episodes ({episodes}) and max_steps ({max_steps}) must be at least 1")
    num_envs = env.num_envs
    quotas = np.full(num_envs, episodes // num_envs) + (np.arange(num_envs) < episodes % num_envs)
    rounds = quotas.max()
    # One row for each environment's k-th episode.
    returns, lengths = np.zeros((rounds, num_envs)), np.zeros((rounds, num_envs), np.int64)
    played = np.zeros(num_envs, np.int64)
    rows = np.arange(num_envs)

    seeds = episode_seeds(seed, num_envs)
    observations, _ = env.reset(seed=seeds)  # type: ignore[arg-type]  # gymnasium's annotation knows only int
    step = 0
    while (played < quotas).any() and step != max_steps:
        actions = np.asarray(act(observations, step), np.int32)
        observations, rewards, terminated, truncated, info = env.step(actions)
        step += 1
        counts = (played < quotas) & ~info["episode_start"]
        current = np.minimum(played, rounds - 1), rows
        returns[current] += np.where(counts, rewards, 0.0)
        lengths[current] += counts
        played += counts & (terminated | truncated)
        if report:
            report(int(played.sum()))
    begun = lengths > 0
    return Evaluation(returns[begun], lengths[begun])


def episode_seeds(seed: int | Sequence[int], num_envs: int) -> UInt32[np.ndarray, "num_envs"]:
    """The seeds with which `evaluate` resets its environments."""
    # One array of seeds: seed + i would make environment 1 of seed 0 the twin of environment 0 of seed 1.
    return np.random.SeedSequence(seed).generate_state(num_envs)
