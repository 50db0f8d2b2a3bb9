"""DQN (Mnih et al. 2015) with any value head."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rlcls import heads
from rlcls.transition import Transition

from .q_learning import QLearning


class DQN(QLearning):
    """Deep Q-learning: `rlcls.agents.base.Agent` with the constructor of `QLearning`.

    loss = mean_i w_i * td_loss(outputs(s_i, a_i), target_i)

    The head defines td_loss (a squared error, a cross-entropy, ...). target_i is its encoding of
    r_i + discount_i * max_a Q_target(s'_i, a). n-step returns and clipped rewards are properties of the batch.

    Source: Mnih et al. 2015; with a categorical head, Farebrother et al. 2024, section 3.

    >>> import jax
    >>> from rlcls import networks
    >>> from rlcls.spec import Spec
    >>> spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32), 2, None)
    >>> agent = DQN(spec, networks.MLP, heads.MSE())
    >>> zeros, one = jnp.zeros((1, 3)), jnp.ones(1)  # the first values of an observation of zeros are 0
    >>> batch = Transition(zeros, jnp.array([1]), reward=one, discount=0 * one, next_observation=zeros, weight=one)
    >>> _, info = jax.jit(agent.update)(agent.init(jax.random.key(0)), batch, jax.random.key(1))
    >>> float(info.metrics["loss"])  # (0 - 1)**2
    1.0
    """

    def loss(
        self, params: PyTree, network_state: PyTree, batch: Transition, target: PyTree
    ) -> tuple[Float[Array, ""], tuple[PyTree, Array, dict[str, Array]]]:
        outputs, network_state, _ = self._apply(params, network_state, batch.observation, train=True)
        chosen = heads.select(outputs, batch.action)
        return jnp.mean(batch.weight * self.head.td_loss(chosen, target)), (network_state, chosen, {})
