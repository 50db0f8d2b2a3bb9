"""DQN (Mnih et al. 2015), its values regressed or classified: the head decides, the agent never asks which it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num, PyTree

from rlcls import diagnostics, heads, networks
from rlcls.replay.transition import Transition


class AgentState(NamedTuple):
    """All that learning changes.

    Attributes:
      params: of the online network, differentiated.
      target_params: of the network that evaluates the next state.
      network_state: what the online network carries besides its parameters.
      target_network_state: the same of the target network.
      opt_state: of the optimiser.
      step: int32 [], updates made.
    """

    params: Any
    target_params: Any
    network_state: Any
    target_network_state: Any
    opt_state: Any
    step: Int[Array, ""]


class UpdateInfo(NamedTuple):
    """What an update tells.

    Attributes:
      metrics: name -> float32 []: loss, td_divergence, q_mean, clip_fraction.
      priorities: float32 [B], the head's `td_divergence` of each transition.
    """

    metrics: dict[str, Float[Array, ""]]
    priorities: Float[Array, "b"]


class DQN:
    """Deep Q-learning as pure functions: `init`, `act`, `update`, `diagnose`.

    n-step returns, their discount and reward clipping are made by the replay; dueling streams by the network.

    Args:
      make_network: rngs -> QNetwork, MultiGameQNetwork, or one that shows its features as they do.
      head: how a value is represented and lost.
      learning_rate: of Adam.
      learning_rate_floor: share of it that is left in the end; 1 keeps it constant.
      learning_rate_fall: updates between which it falls to that, in a straight line.
      adam_eps: of Adam.
      max_gradient_norm: clips the gradient's global norm; 0 does not.
      target_period: updates between copies of the parameters to the target network.
      target_tau: part of the way the target moves at each of them: 1 copies; with target_period=1 a small one is
        Polyak averaging.
      double: choose the next action by the online network (van Hasselt et al. 2016).
    """

    def __init__(
        self,
        make_network: Callable[[nnx.Rngs], networks.QNetwork],
        head: heads.Head,
        *,
        learning_rate: float = 6.25e-5,
        learning_rate_floor: float = 1.0,
        learning_rate_fall: Sequence[int] = (0, 1),
        adam_eps: float = 1.5e-4,
        max_gradient_norm: float = 0.0,
        target_period: int = 2000,
        target_tau: float = 1.0,
        double: bool = False,
    ):
        self._make_network, self.head = make_network, head
        self._target_period, self._target_tau, self._double = target_period, target_tau, double
        self._clip = optax.clip_by_global_norm(max_gradient_norm) if max_gradient_norm else optax.identity()
        rate: optax.ScalarOrSchedule = learning_rate
        if learning_rate_floor != 1:
            first, last = learning_rate_fall
            rate = optax.linear_schedule(rate, learning_rate_floor * rate, last - first, first)
        self._optimizer = optax.chain(self._clip, optax.adam(rate, eps=adam_eps))
        # Only pure functions are kept: every parameter comes from `init` or from a checkpoint, none is drawn.
        network = nnx.eval_shape(lambda: make_network(nnx.Rngs(0)))
        self._apply, _, _ = networks.functional(network)
        self._causal = any(
            getattr(module, "causal", False) for _, module in nnx.iter_modules(network.backbone)
        )

    def init(self, key: Array) -> AgentState:
        """A state before the first update, its parameters drawn from `key`."""
        _, params, network_state = networks.functional(self._make_network(nnx.Rngs(key)))
        return AgentState(
            params=params,
            target_params=params,
            network_state=network_state,
            target_network_state=network_state,
            opt_state=self._optimizer.init(params),
            step=jnp.zeros((), jnp.int32),
        )

    def q_values(
        self, params: Any, network_state: Any, observations: PyTree[Num[ArrayLike, "b ..."]]
    ) -> Float[Array, "b a"]:
        """The value of every action, in the units of the support."""
        outputs, _, _ = self._apply(params, network_state, observations, train=False)
        return self.head.value(outputs)

    def act(
        self,
        params: Any,
        network_state: Any,
        observations: PyTree[Num[ArrayLike, "b ..."]],
        key: Array,
        epsilon: Any,
    ) -> Int[Array, "b"]:
        """Epsilon-greedy actions.

        Args:
          params: of the online network.
          network_state: of the online network.
          observations: [B, *observation], or a tree of such arrays.
          key: of this step.
          epsilon: [] probability of a uniformly random action.

        Returns:
          int32 [B].
        """
        q_values = self.q_values(params, network_state, observations)
        greedy = jnp.argmax(q_values, axis=-1)
        explore_key, action_key = jax.random.split(key)
        random = jax.random.randint(action_key, greedy.shape, 0, q_values.shape[-1])
        explore = jax.random.uniform(explore_key, greedy.shape) < epsilon
        return jnp.where(explore, random, greedy).astype(jnp.int32)

    def update(self, state: AgentState, batch: Transition, key: Array) -> tuple[AgentState, UpdateInfo]:
        """One gradient step, and the target network's when its turn has come.

        Args:
          state: before.
          batch: of B transitions.
          key: unused: this update draws nothing at random.

        Returns:
          The state after, and what there is to tell of it.
        """
        del key
        target, backup = self._target(state, batch)
        (loss, (network_state, chosen)), gradients = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, state.network_state, batch, target
        )
        changes, opt_state = self._optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        step = state.step + 1
        online, target_network = (params, network_state), (state.target_params, state.target_network_state)
        if self._target_tau < 1:
            online = jax.tree.map(self._between, online, target_network)
        target_params, target_network_state = optax.periodic_update(
            online, target_network, step, self._target_period
        )
        divergence = self.head.td_divergence(chosen, target)
        metrics = {
            "loss": loss,
            "td_divergence": jnp.mean(divergence),
            "q_mean": jnp.mean(self.head.value(chosen)),
            "clip_fraction": self.head.clip_fraction(backup),
        }
        new_state = AgentState(params, target_params, network_state, target_network_state, opt_state, step)
        return new_state, UpdateInfo(metrics, divergence)

    def diagnose(self, state: AgentState, batch: Transition, held_out: Transition) -> dict[str, Array]:
        """What there is to see inside the network before an update; it changes nothing.

        Args:
          state: before the update.
          batch: the update's.
          held_out: transitions of no update so far; their weights say which count.

        Returns:
          Scalars by name: gradient_norm (before any clipping) and td_error on the update's batch, with its weights;
          held_out_td_error; `diagnostics.feature_metrics` of the held-out observations; and what the network shows
          of itself there, such as the dormant units of all its layers.
        """
        target, backup = self._target(state, batch)
        gradients, (_, chosen) = jax.grad(self._loss, has_aux=True)(
            state.params, state.network_state, batch, target
        )
        outputs, _, intermediates = self._apply(
            state.params, state.network_state, held_out.observation, train=False, capture=True
        )
        held_out_values = self.head.value(heads.select(outputs, held_out.action))
        _, held_out_backup = self._target(state, held_out)
        return {
            "gradient_norm": diagnostics.global_norm(gradients),
            "td_error": diagnostics.td_error(self.head.value(chosen), backup, batch.weight),
            "held_out_td_error": diagnostics.td_error(held_out_values, held_out_backup, held_out.weight),
            **diagnostics.feature_metrics(*intermediates["features"]),
            **diagnostics.shown(intermediates, causal=self._causal),
        }

    def _between(self, online: Array, target: Array) -> Array:
        """Where the target moves; what has no average, such as a random key or a count, is the online network's."""
        if not jnp.issubdtype(online.dtype, jnp.floating):
            return online
        return self._target_tau * online + (1 - self._target_tau) * target

    def _target(self, state: AgentState, batch: Transition) -> tuple[Any, Float[Array, "b"]]:
        """The head's target, and the value r + discount * max Q(s', a') that it stands for."""
        next_outputs, _, _ = self._apply(
            state.target_params, state.target_network_state, batch.next_observation, train=False
        )
        if self._double:
            next_q_values = self.q_values(state.params, state.network_state, batch.next_observation)
        else:
            next_q_values = self.head.value(next_outputs)
        chosen_next = heads.select(next_outputs, jnp.argmax(next_q_values, axis=-1))
        target = self.head.td_target(chosen_next, batch.reward, batch.discount)
        return target, batch.reward + batch.discount * self.head.value(chosen_next)

    def _loss(self, params: Any, network_state: Any, batch: Transition, target: Any) -> tuple[Array, Any]:
        """The loss, and what else came of it: the network's state and the outputs of the actions taken."""
        outputs, network_state, _ = self._apply(params, network_state, batch.observation, train=True)
        chosen = heads.select(outputs, batch.action)
        return jnp.mean(batch.weight * self.head.td_loss(chosen, target)), (network_state, chosen)
