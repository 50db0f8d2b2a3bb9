"""Agents as pure functions: they touch no environment, file, clock or global.

`base.py` says what an agent is.
"""

from .base import Agent, UpdateInfo
from .dqn import DQN

__all__ = ["DQN", "Agent", "UpdateInfo"]
