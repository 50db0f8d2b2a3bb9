"""Samples transitions from a recording on the device with pure functions, for compiled loops.

The transitions equal those of `Transitions`. The tests compare the two row by row.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32, Key, Shaped

from rlcls.transition import Transition

from .transitions import Transitions

Columns: TypeAlias = dict[str, Shaped[Array, "..."]]
"""`Transitions.arrays` on the device."""


@dataclasses.dataclass(frozen=True)
class ArrayTransitions:
    """Samples transitions from `Transitions.arrays`, which each method takes as an argument, so that lanes share them.

    Rewards are summed in float32. `Transitions` sums them in float64, so the two sums can differ in the last bits.

    Attributes:
      stack: frames in an observation; 0 if a frame is the observation.
      n_step: rewards summed before bootstrapping.
      gamma: discount of one agent step.
    """

    stack: int
    n_step: int
    gamma: float

    @classmethod
    def of(cls, data: Transitions) -> ArrayTransitions:
        """The sampler with the options of `data`."""
        return cls(data.stack, data.n_step, data.gamma)

    def sample(
        self, columns: Columns, size: int, key: Key[Array, ""]
    ) -> tuple[Transition, Int32[Array, "size"]]:
        """A batch, drawn with replacement; all transitions are equally likely.

        Args:
          columns: the arrays of the recording.
          size: transitions in the batch.
          key: determines which transitions are drawn.

        Returns:
          The transitions, and the row where each of them starts.
        """
        rows = columns["first_rows"][jax.random.randint(key, (size,), 0, columns["count"])]
        return self.at(columns, rows), rows

    def at(self, columns: Columns, rows: Int[Array, "b"]) -> Transition:
        """The transitions that start at these rows, as `Transitions.at`."""
        reward, discount, steps = self._accumulate(columns, rows)
        last = columns["begins"].shape[0] - 1
        # A terminal row without a final observation has no next row; its discount is 0.
        ahead = jnp.minimum(rows + steps, last)
        is_missing = columns["begins"][ahead] | (rows + steps > last)
        next_rows = jnp.where(is_missing, rows + steps - 1, ahead)
        return Transition(
            observation=self._observations(columns, rows),
            action=columns["actions"][rows],
            reward=reward,
            discount=discount,
            next_observation=self._observations(columns, next_rows),
            weight=jnp.ones(rows.shape),
            next_action=columns["actions"][next_rows],
            return_to_go=columns["returns"][rows],
        )

    def _accumulate(
        self, columns: Columns, rows: Int[Array, "b"]
    ) -> tuple[Float32[Array, "b"], Float32[Array, "b"], Int[Array, "b"]]:
        """The sum of rewards, the discount, and the number of rows to the bootstrap observation."""
        at = rows[:, None] + jnp.arange(self.n_step)
        last = columns["begins"].shape[0] - 1
        is_known = (at <= last) & columns["steps"][jnp.minimum(at, last)]
        terminals = columns["terminals"][jnp.minimum(at, last)]
        # The sum stops before a row whose outcome is not known, and after a terminal row.
        ends = jnp.cumsum(~is_known | jnp.pad(terminals[:, :-1], ((0, 0), (1, 0))), axis=1)
        running: Bool[Array, "b n"] = (ends == 0).at[:, 0].set(True)
        discounts = (self.gamma ** np.arange(self.n_step + 1)).astype(np.float32)
        rewards = columns["rewards"][jnp.minimum(at, last)]
        reward = jnp.sum(jnp.where(running, discounts[:-1] * rewards, 0.0), axis=1)
        steps = running.sum(axis=1)
        is_over = jnp.any(running & terminals, axis=1)
        return reward, jnp.where(is_over, 0.0, jnp.asarray(discounts)[steps]), steps

    def _observations(self, columns: Columns, rows: Int[Array, "b"]) -> Shaped[Array, "b *observation"]:
        frames = columns["frames"]
        if not self.stack:
            return frames[rows]
        back = jnp.maximum(rows[:, None] + jnp.arange(1 - self.stack, 1), 0)  # oldest frame first
        # A frame belongs to another episode if a later row, up to the sampled one, starts an episode.
        begins = columns["begins"][back[:, 1:]]
        before = jnp.flip(jnp.cumsum(jnp.flip(begins, 1), axis=1), 1) > 0
        before = jnp.pad(before, ((0, 0), (0, 1)))
        before = before.reshape(*before.shape, *[1] * (frames.ndim - 1))
        return jnp.where(before, jnp.zeros((), frames.dtype), frames[back])
