"""Agents as pure functions, which use no environment, file, clock or global. `base.py` defines their interface."""

from .base import Agent, UpdateInfo
from .bc import BC
from .cql import CQL
from .dqn import DQN
from .q_transformer import QTransformer, QTransformerBC

__all__ = ["BC", "CQL", "DQN", "Agent", "QTransformer", "QTransformerBC", "UpdateInfo"]
