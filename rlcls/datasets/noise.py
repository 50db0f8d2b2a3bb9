"""Scripted experts with noise: recorded episodes that fail and succeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from rlcls._errors import check_choice
from rlcls.envs.base import Observations

_NEVER = 10**9  # steps, more than any episode has

NOISES: dict[str, tuple[int, ...]] = {
    "closed_loop": (1,),
    "mixed": (1, 4, 8, _NEVER),
    "replay": (_NEVER,),
}
"""Each episode draws one of these numbers of steps between two looks of the expert."""

_STREAM = 1  # of random numbers; policy=random has 0

Sampler = Callable[[np.random.Generator], Shaped[np.ndarray, "N *action"]]


class NoisyExpert:
    """The policy of an environment's own expert, disturbed: `rlcls.datasets.playing.Act`.

    Each episode draws a noise level and a number of steps between two looks. In each step the action is a random one
    with the probability of the level. Between two looks the expert acts as if nothing had disturbed it since the last:
    with "replay" it sees only the first state, as when a demonstration is played again with noise (Chebotar et al.
    2023, section 5.3); with "closed_loop" it sees every state; with "mixed" it looks every 1, 4 or 8 steps or never
    again, equally likely.

    Noise that is uniform leaves the expert's action the most frequent one wherever the expert sees the state, so a
    clone of "closed_loop" data loses the noise. In the other two, the most frequent action is wrong in many states.

    Args:
      scripted: `scripted_actions` of N environments, see `rlcls.envs.HostEnv`.
      noise: a name of `NOISES`.
      levels: probabilities, equally likely.
      sample: random actions of all environments.
      generator: (part, step, stream) -> the generator of random numbers for that moment.

    Raises:
      ValueError: an unknown noise, no level, or one that is no probability.
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
        # Of each environment's episode: its noise level, the steps between two looks, and its steps so far.
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
