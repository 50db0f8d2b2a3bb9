"""The policy that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from omegaconf import DictConfig

from . import xla
from .checkpoint import Checkpoint
from .learner import Acting
from .trainer import _EVALUATE


class Player:
    """Plays as the run did when it evaluated at the checkpoint's step: same parameters, same random numbers.

    Args:
      config: of the run.
      agent: init, act, update.
      checkpoint: of the run.
      epsilon: probability of a random action.

    Attributes:
      seed: of the environments in that evaluation.
      first_actions: what the first environment was told so far.
    """

    def __init__(self, config: DictConfig, agent: Any, checkpoint: Checkpoint, epsilon: float):
        number = checkpoint.counters["trainer"]["steps"]
        self.seed = [int(config.seed), _EVALUATE, number]
        self.first_actions: list[int] = []
        key = jax.random.fold_in(jax.random.key(config.seed), _EVALUATE)
        key = jax.random.fold_in(key, number)
        state = xla.jit(agent.init)(key)
        acting = Acting(state.params, state.network_state)
        tree = checkpoint.tree({"state": state, "acting": [acting] * int(config.training.lag)})
        # With a lag the newest updates do not act yet.
        latest = Acting(tree["state"].params, tree["state"].network_state)
        self._acting = [*tree["acting"], latest][0]
        self._epsilon = epsilon

        def act(acting: Acting, observations: Any, step: Any, epsilon: Any) -> Any:
            return agent.act(*acting, observations, jax.random.fold_in(key, step), epsilon)

        self._act = xla.jit(act)

    def __call__(self, observations: np.ndarray, step: int) -> np.ndarray:
        """Actions int32 [N] for the observations [N, ...] of the evaluation's `step`."""
        actions = np.asarray(self._act(self._acting, observations, step, self._epsilon))
        self.first_actions.append(int(actions[0]))
        return actions
