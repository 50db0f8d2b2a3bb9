"""Behavioural cloning: the control that learns no values."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from rlcls import heads
from rlcls.spec import Spec
from rlcls.transition import Transition

from .base import Mean, UpdateInfo, identity
from .q_learning import ADAM, AgentState, Optimizer, QLearning


class Cloning(QLearning):
    """The update of behavioural cloning, for an agent whose outputs are one logit for each action.

    loss = mean_i w_i * -log softmax(logits_i)[a_i], over all tokens where an action is several.
    """

    def update(
        self, state: AgentState, batch: Transition, key: Array, *, mean: Mean = identity
    ) -> tuple[AgentState, UpdateInfo]:
        """One gradient step on the cross-entropy of the recorded actions.

        Returns:
          The state after the update; `loss` in nats, and `accuracy`, the share of actions that have the largest logit.
        """
        del key
        (loss, (network_state, logits)), gradients = jax.value_and_grad(self._cross_entropy, has_aux=True)(
            state.params, state.network_state, batch
        )
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == self._actions(batch))
        metrics = {"loss": loss, "accuracy": accuracy}
        gradients, network_state, metrics = mean((gradients, network_state, metrics))
        return self._step(state, gradients, network_state), UpdateInfo(metrics, None)

    # The diagnoses of `QLearning` are about targets, and this agent has none.
    diagnose = None  # type: ignore[assignment]

    def _cross_entropy(
        self, params: PyTree, network_state: PyTree, batch: Transition
    ) -> tuple[Float[Array, ""], tuple[PyTree, Float[Array, "b *t a"]]]:
        outputs, network_state, _ = self._apply(params, network_state, *self._inputs(batch), train=True)
        logits = self.head.value(outputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, self._actions(batch))
        weight = jnp.asarray(batch.weight).reshape(-1, *[1] * (losses.ndim - 1))
        return jnp.mean(weight * losses), (network_state, logits)


class BC(Cloning):
    """Behavioural cloning of discrete actions: `rlcls.agents.base.Agent`.

    loss = mean_i w_i * -log softmax(logits(s_i))[a_i]: the softmax learns how often the data takes each action. `act`
    takes the most frequent one, and a random one with probability epsilon. The network is that of `QLearning` with one
    output for each action, so `q_values` returns the logits, and the target network is an older or averaged policy.

    Args:
      spec: as in `QLearning`.
      make_backbone: as in `QLearning`.
      head: unused, since a logit is no value.
      learning_rate, schedule, optimizer, max_gradient_norm, target_period, target_tau, games: as in `QLearning`.

    Raises:
      ValueError: an option is out of range, or spec and backbone do not fit together.

    Source: Pomerleau 1988; as a control of offline Q-learning, Kumar et al. 2022.
    """

    def __init__(
        self,
        spec: Spec,
        make_backbone: Callable[..., nnx.Module],
        head: heads.Head,
        *,
        learning_rate: float = 6.25e-5,
        schedule: optax.Schedule | None = None,
        optimizer: Optimizer = ADAM,
        max_gradient_norm: float = 0.0,
        target_period: int = 2000,
        target_tau: float = 1.0,
        games: int = 0,
    ):
        super().__init__(
            spec,
            make_backbone,
            heads.MSE(),  # its one output for each action is the logit
            learning_rate=learning_rate,
            schedule=schedule,
            optimizer=optimizer,
            max_gradient_norm=max_gradient_norm,
            target_period=target_period,
            target_tau=target_tau,
            games=games,
        )
