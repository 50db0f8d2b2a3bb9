"""A policy that is only scored: what it plays is a function of the run's seed, the moment and its parameters."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from omegaconf import DictConfig

from . import xla
from .checkpoint import Checkpoint
from .evaluation import Act
from .learner import Acting

KEY = 3  # what the run's key is folded with; the trainer's uses are 0, 1 and 2


class Player:
    """Plays evaluations of one run, each with random numbers of its own.

    Args:
      config: of the run.
      agent: init, act, update.
      epsilon: probability of a random action.
    """

    def __init__(self, config: DictConfig, agent: Any, epsilon: float):
        self._seed, self._epsilon = int(config.seed), epsilon
        key = jax.random.fold_in(jax.random.key(self._seed), KEY)

        def act(acting: Acting, observations: Any, number: Any, step: Any, epsilon: Any) -> Any:
            step_key = jax.random.fold_in(jax.random.fold_in(key, number), step)
            return agent.act(*acting, observations, step_key, epsilon)

        self._act = xla.jit(act)

    def policy(self, acting: Acting, number: int) -> Act:
        """What `evaluate` takes, to play with `acting` after vector step `number`."""

        def act(observations: np.ndarray, step: int) -> np.ndarray:
            return np.asarray(self._act(acting, observations, number, step, self._epsilon))

        return act

    def seed(self, number: int) -> list[int]:
        """Of the environments of the evaluation after vector step `number`."""
        return [self._seed, KEY, number]


def acting(config: DictConfig, agent: Any, checkpoint: Checkpoint) -> Acting:
    """What the run acted with after the checkpoint: with a lag the newest updates do not act yet."""
    state = jax.eval_shape(agent.init, jax.random.key(0))
    target = bool(config.training.act_with_target)
    like = Acting.of(state, target)
    tree = checkpoint.tree({"state": state, "acting": [like] * int(config.training.lag)})
    return [*tree["acting"], Acting.of(tree["state"], target)][0]
