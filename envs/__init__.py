"""Environments. `base.py` defines their interfaces, and each kind of environment has a module of its own.

Some modules are for all kinds: `spaces.py`, `checker.py`, `wrappers.py` and `autoreset.py`.
"""

from .base import HostEnv, JaxEnv, environment_seeds

__all__ = ["HostEnv", "JaxEnv", "environment_seeds"]
