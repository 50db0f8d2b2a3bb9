"""Environments: `base.py` says what one is; Atari, gymnasium's registry and probe MDPs have a file each."""

from .base import HostEnv, JaxEnv, environment_seeds

__all__ = ["HostEnv", "JaxEnv", "environment_seeds"]
