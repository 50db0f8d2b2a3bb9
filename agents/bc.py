"""Behavioural cloning, a baseline that learns no values."""

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
    """The update of behavioural cloning, for an agent with one logit for each action, or for each value of a token.

    loss = mean_i w_i * -log softmax(logits_i)[a_i], in nats; the mean is also over the tokens of an action.
    """

    def update(
        self, state: AgentState, batch: Transition, key: Array, *, mean: Mean = identity
    ) -> tuple[AgentState, UpdateInfo]:
        """One gradient step on the cross-entropy of the recorded actions.

        Returns:
          The new state, and the metrics `loss`, in nats, and `accuracy`, the share of actions with the largest logit.
        """
        del key
        (loss, (network_state, logits)), gradients = jax.value_and_grad(self._cross_entropy, has_aux=True)(
            state.params, state.network_state, batch
        )
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == self._actions(batch))
        metrics = {"loss": loss, "accuracy": accuracy}
        gradients, network_state, metrics = mean((gradients, network_state, metrics))
        return self._step(state, gradients, network_state), UpdateInfo(metrics, None)

    # `QLearning.diagnose` needs targets, and this agent has none.
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

    loss = mean_i w_i * -log softmax(logits(s_i))[a_i], in nats

    The softmax learns the share of each action in the data. `act` takes the most frequent action, or a random one with
    probability epsilon. The network is that of `QLearning` with one output for each action, so `q_values` returns the
    logits. The target network is an older or averaged policy.

    Args:
      spec: as in `QLearning`.
      make_backbone: as in `QLearning`.
      head: unused, because a logit is not a value.
      learning_rate, schedule, optimizer, max_gradient_norm, target_period, target_tau, games: as in `QLearning`.

    Raises:
      ValueError: an option is out of range, or spec and backbone do not fit together.

    Source: Pomerleau 1988; Kumar et al. 2022, as a baseline of offline Q-learning.

    >>> from rlcls import networks
    >>> spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32), 2, None)
    >>> agent = BC(spec, networks.MLP, heads.MSE())
    >>> zeros, one = jnp.zeros((1, 3)), jnp.ones(1)  # the first logits of an observation of zeros are 0
    >>> batch = Transition(zeros, jnp.array([1]), one, 0 * one, zeros, one)
    >>> _, info = jax.jit(agent.update)(agent.init(jax.random.key(0)), batch, jax.random.key(1))
    >>> round(float(info.metrics["loss"]), 4)  # log 2
    0.6931
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
            heads.MSE(),  # a head with one output, which is the logit
            learning_rate=learning_rate,
            schedule=schedule,
            optimizer=optimizer,
            max_gradient_norm=max_gradient_norm,
            target_period=target_period,
            target_tau=target_tau,
            games=games,
        )
