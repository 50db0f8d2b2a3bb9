"""Agents as pure functions: they touch no environment, file, clock or global.

`base.py` says what an agent is.
"""

from .base import Agent, UpdateInfo
from .bc import BC
from .cql import CQL
from .dqn import DQN
from .q_transformer import QTransformer, QTransformerBC

__all__ = ["BC", "CQL", "DQN", "Agent", "QTransformer", "QTransformerBC", "UpdateInfo"]
