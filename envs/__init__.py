"""Environments. `base.py` defines their interfaces; every other module has one kind of environment."""

from .base import HostEnv, JaxEnv, environment_seeds

__all__ = ["HostEnv", "JaxEnv", "environment_seeds"]
