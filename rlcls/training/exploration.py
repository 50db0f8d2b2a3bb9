"""How often an agent acts at random."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearDecay:
    """The probability of a random action decays linearly, beginning when learning begins, then stays.

    Attributes:
      epsilon_start: probability until learning begins.
      epsilon_end: probability after the decay.
      epsilon_decay: agent steps that the decay takes.
    """

    epsilon_start: float = 1.0
    epsilon_end: float = 0.01
    epsilon_decay: int = 50_000

    def __post_init__(self) -> None:
        for name in ("epsilon_start", "epsilon_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.epsilon_decay < 0:
            raise ValueError(f"epsilon_decay must be at least 0, not {self.epsilon_decay}")

    def epsilon(self, agent_steps: Any) -> Any:
        """The probability `agent_steps` after learning began; negative before it. Traced steps give a traced one."""
        clip = jnp.clip if isinstance(agent_steps, jax.Array) else np.clip
        share = clip(agent_steps / max(1, self.epsilon_decay), 0.0, 1.0)
        return self.epsilon_start + share * (self.epsilon_end - self.epsilon_start)
