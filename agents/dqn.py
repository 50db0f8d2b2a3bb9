"""DQN (Mnih et al. 2015) with any value head."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rlcls import heads
from rlcls.transition import Transition

from .q_learning import QLearning


class DQN(QLearning):
    """Deep Q-learning: `rlcls.agents.base.Agent` with the constructor of `QLearning`.

    The loss is mean_i w_i * td_loss(outputs(s_i, a_i), target_i), where the head decides what td_loss is (a squared
    error, a cross-entropy, ...) and target_i stands for r_i + discount_i * max_a Q_target(s'_i, a). n-step returns
    and clipped rewards come with the batch.

    Source: Mnih et al. 2015; with a categorical head, Farebrother et al. 2024, section 3.
    """

    def loss(
        self, params: PyTree, network_state: PyTree, batch: Transition, target: PyTree
    ) -> tuple[Float[Array, ""], tuple[PyTree, Array, dict[str, Array]]]:
        outputs, network_state, _ = self._apply(params, network_state, batch.observation, train=True)
        chosen = heads.select(outputs, batch.action)
        return jnp.mean(batch.weight * self.head.td_loss(chosen, target)), (network_state, chosen, {})
