"""Dopamine's JAX DQN on Pong: agent, replay and preprocessing of the installed package, with a loop of this file.

Dopamine's own loop needs TensorFlow, only for its logs. The modules of the agent import TensorFlow, TensorFlow
Probability, the old gym and Baselines without using them. If these are missing, empty modules take their place.
"""

import argparse
import importlib.util
import sys
import types
from unittest import mock

from _meter import Meter, measure

_UNUSED = ("tensorflow", "tensorflow_probability", "gym", "baselines")


class _Unused(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=f"{self.__name__}.{name}")


class _Finder:
    """Finds an empty module for every import below an unused package."""

    def find_spec(self, name: str, path=None, target=None):
        if name.split(".")[0] in _missing:
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Unused(spec.name)

    def exec_module(self, module) -> None:
        pass


_missing = {name for name in _UNUSED if importlib.util.find_spec(name) is None}


def run(meter: Meter, arguments: argparse.Namespace) -> None:
    sys.meta_path.append(_Finder())
    import gin
    import numpy as np
    from dopamine.discrete_domains import atari_lib
    from dopamine.jax.agents.dqn import dqn_agent

    gin.bind_parameter("ReplayBuffer.max_capacity", 50_000)
    gin.bind_parameter("ReplayBuffer.batch_size", 32)
    env = atari_lib.create_atari_environment("Pong", sticky_actions=True)
    agent = dqn_agent.JaxDQNAgent(
        num_actions=env.action_space.n,
        min_replay_history=meter.fill,
        update_period=4,
        epsilon_fn=dqn_agent.identity_epsilon,  # the network chooses the action at every step, as later in training
        seed=0,
    )
    while True:
        action = agent.begin_episode(env.reset())
        while True:
            observation, reward, over, _ = env.step(action)
            meter.step()
            reward = np.clip(reward, -1, 1)
            if over:
                agent.end_episode(reward, terminal=True)
                break
            action = agent.step(reward, observation)


if __name__ == "__main__":
    measure(("dopamine-rl", "jax", "flax", "gymnasium", "ale-py"), run)
