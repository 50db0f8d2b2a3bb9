"""Scripted experts with noise, whose episodes fail or succeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from rlcls._errors import check_choice
from rlcls.envs.base import Observations

_NEVER = 10**9  # steps, more than an episode has

NOISES: dict[str, tuple[int, ...]] = {
    "closed_loop": (1,),
    "mixed": (1, 4, 8, _NEVER),
    "replay": (_NEVER,),
}
"""For each noise, the numbers of steps between two looks of the expert. Each episode draws one of them."""

_STREAM = 1  # stream of random numbers; policy=random uses 0

Sampler = Callable[[np.random.Generator], Shaped[np.ndarray, "N *action"]]


class NoisyExpert:
    """An environment's scripted expert with noise: `rlcls.datasets.playing.Act`.

    Each episode draws a noise level and a number of steps between two looks. The level is the probability with which a
    step plays a random action. Between two looks the expert acts as if its own actions had been played since the last
    look. With "replay" it sees only the first state, like a demonstration that is replayed with noise (Chebotar et al.
    2023, section 5.3). With "closed_loop" it sees every state. With "mixed" it looks every 1, 4 or 8 steps or only at
    the first state, equally likely.

    Where the expert sees the state, its action stays the most frequent one under uniform noise. A clone of
    "closed_loop" data therefore loses the noise. With the other two, the most frequent action is wrong in many states.

    Args:
      scripted: `scripted_actions` of N environments; see `rlcls.envs.HostEnv`.
      noise: a name of `NOISES`.
      levels: equally likely noise levels, which are probabilities.
      sample: generator -> random actions of all environments.
      generator: (part, step, stream) -> the generator of random numbers for that step.

    Raises:
      ValueError: the noise is unknown, there is no level, or a level is not a probability.
    """

    def __init__(
        self,
        scripted: Callable[[Bool[np.ndarray, "N"]], Shaped[np.ndarray, "N *action"]],
        noise: str,
        levels: Sequence[float],
        sample: Sampler,
        generator: Callable[[int, int, int], np.random.Generator],
    ):
        check_choice("noise", noise, tuple(NOISES))
        if not levels or not all(0 <= level <= 1 for level in levels):
            raise ValueError(f"levels must be probabilities, not {list(levels)}")
        self._scripted, self._sample, self._generator = scripted, sample, generator
        self._all_levels, self._all_periods = np.array(levels), np.array(NOISES[noise])
        # For each environment's episode: the noise level, the steps between two looks, and the steps so far.
        self._levels, self._periods, self._ages = np.zeros(()), np.ones((), np.int64), np.zeros((), np.int64)

    def __call__(
        self, observations: Observations, starts: Bool[np.ndarray, "N"], part: int, step: int
    ) -> Shaped[np.ndarray, "N *action"]:
        random = self._generator(part, step, _STREAM)
        self._levels = np.where(starts, random.choice(self._all_levels, len(starts)), self._levels)
        self._periods = np.where(starts, random.choice(self._all_periods, len(starts)), self._periods)
        self._ages = np.where(starts, 0, self._ages + 1)
        actions = self._scripted(self._ages % self._periods == 0)
        disturbed = random.random(len(starts)) < self._levels
        return np.where(disturbed.reshape(-1, *[1] * (actions.ndim - 1)), self._sample(random), actions)
