"""A wrapper that adds the number of the game to observations."""

from __future__ import annotations

from typing import Any

import gymnasium.vector
import numpy as np
from gymnasium.spaces import Dict, Discrete
from jaxtyping import Integer, Shaped

from rlcls._errors import UserError

from .base import HostEnv


class OneOfMany(gymnasium.vector.VectorObservationWrapper):
    """A gymnasium wrapper whose observations are {"frames": [N, ...], "game": int32 [N]}; `as_host_env` takes it.

    In it an agent that has learned several games with one network plays one of them.

    Args:
      env: the game, a gymnasium vector environment.
      number: the number of the game in the agent's dataset, at least 0.

    Raises:
      UserError: the number is out of range, or `env` is not a gymnasium vector environment.
    """

    def __init__(self, env: HostEnv, number: int):
        if not isinstance(number, int) or number < 0:
            raise UserError(f"env.number must be an integer of at least 0, not {number}")
        vector_env: Any = env
        if not isinstance(vector_env, gymnasium.vector.VectorEnv):
            raise UserError(f"env.number needs a gymnasium vector environment, not {type(env).__name__}")
        super().__init__(vector_env)
        self._played, self._number = env, number
        space = Dict(frames=vector_env.single_observation_space, game=Discrete(number + 1))
        self.single_observation_space = space
        self.observation_space = gymnasium.vector.utils.batch_space(space, env.num_envs)

    def observations(  # type: ignore[override, unused-ignore]  # the types differ between releases of gymnasium
        self, observations: Shaped[np.ndarray, "N ..."]
    ) -> dict[str, np.ndarray]:
        """The observations, each with the number of the game."""
        game: Integer[np.ndarray, "N"] = np.full(len(observations), self._number, np.int32)
        return {"frames": observations, "game": game}

    def evaluation(self, num_envs: int) -> Any:
        """The evaluation environment of the game, with the same number."""
        return OneOfMany(self._played.evaluation(num_envs), self._number)
