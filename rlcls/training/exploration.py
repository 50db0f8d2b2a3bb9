"""The probability with which an agent acts at random."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearDecay:
    """A probability of a random action that decays linearly once learning begins, and then stays constant.

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
        """The probability of a random action.

        Args:
          agent_steps: agent steps since learning began; negative before that. A traced number gives a traced result.
        """
        clip = jnp.clip if isinstance(agent_steps, jax.Array) else np.clip
        share = clip(agent_steps / max(1, self.epsilon_decay), 0.0, 1.0)
        return self.epsilon_start + share * (self.epsilon_end - self.epsilon_start)
