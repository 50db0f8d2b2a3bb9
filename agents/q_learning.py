"""The base of agents with Q-values of discrete actions: networks, acting, targets and the optimiser's step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree, Shaped

from rlcls import diagnostics, heads, networks
from rlcls.spec import Spec
from rlcls.transition import Transition

from .base import Mean, UpdateInfo, identity

Optimizer = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
ADAM: Optimizer = functools.partial(optax.adam, eps=1.5e-4)  # the epsilon of Dopamine


class Network(NamedTuple):
    """A network's parameters, and its other state (batch statistics, keys of random streams)."""

    params: PyTree
    state: PyTree


class AgentState(NamedTuple):
    """Everything that an update changes.

    Attributes:
      params: parameters of the online network, which gradients change.
      target_params: parameters of the target network, which evaluates next states.
      network_state: other state of the online network, such as batch statistics.
      target_network_state: other state of the target network.
      opt_state: state of the optimiser.
      step: int32 [], the number of updates made.
    """

    params: PyTree
    target_params: PyTree
    network_state: PyTree
    target_network_state: PyTree
    opt_state: PyTree
    step: Int[Array, ""]

    @property
    def online(self) -> Network:
        """The online network."""
        return Network(self.params, self.network_state)

    @property
    def target(self) -> Network:
        """The target network."""
        return Network(self.target_params, self.target_network_state)


class QLearning:
    """A Q-network with a target network. An agent defines its loss by overriding `loss`.

    Args:
      spec: discrete actions, and an observation that is one array; with `games`, a dict {"frames", "game"}.
      make_backbone: (observation shape, rngs=) -> NNX module with `num_features`.
      head: the value head, which defines the representation of a value, its target and its loss.
      learning_rate: the optimiser's learning rate.
      schedule: update number -> factor of `learning_rate`, such as `optax.linear_schedule(1.0, 0.1, 50_000)`; None
        keeps the rate constant.
      optimizer: learning rate -> `optax.GradientTransformation`, such as `functools.partial(optax.adam, eps=1e-4)`.
      max_gradient_norm: gradients are clipped to this global norm; 0 disables clipping.
      target_period: updates between two updates of the target network.
      target_tau: target = target_tau * online + (1 - target_tau) * target at these updates. 1 copies the parameters; a
        small number with target_period=1 gives a Polyak average.
      double: the online network chooses the next action instead of the target network (van Hasselt et al. 2016).
      dueling: outputs = state + advantage - mean of advantage over actions (Wang et al. 2016).
      games: the number of games that share the network, each with its own last layer (Kumar et al. 2022). Observations
        are then {"frames": [B, ...], "game": int32 [B]} with 0 <= game < games. With games=0 an observation is one
        array.

    Raises:
      ValueError: an option is out of range, or spec, backbone and head do not fit together.
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
        double: bool = False,
        dueling: bool = False,
        games: int = 0,
    ):
        if games < 0:
            raise ValueError(f"games must be at least 0, not {games}")
        if games and dueling:
            raise ValueError("dueling=true is not possible with games: each game has one last layer")
        self._games = games
        self._num_actions = self._check(spec)
        if learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, not {learning_rate}")
        if max_gradient_norm < 0:
            raise ValueError(f"max_gradient_norm must be at least 0, not {max_gradient_norm}")
        if target_period < 1:
            raise ValueError(f"target_period must be at least 1, not {target_period}")
        if not 0 < target_tau <= 1:
            raise ValueError(f"target_tau must be above 0 and at most 1, not {target_tau}")
        self.spec, self.head, self._dueling = spec, head, dueling
        self._make_backbone = make_backbone
        self._target_period, self._target_tau, self._double = target_period, target_tau, double
        clip = optax.clip_by_global_norm(max_gradient_norm) if max_gradient_norm else optax.identity()
        rate = learning_rate if schedule is None else lambda update: learning_rate * schedule(update)
        self._optimizer = optax.chain(clip, optimizer(rate))
        # The agent keeps only the pure function; parameters come from `init` or from a checkpoint.
        network = nnx.eval_shape(lambda: self._make_network(nnx.Rngs(0)))
        self._apply, params, network_state = networks.functional(network)
        self._causal = any(
            getattr(module, "causal", False) for _, module in nnx.iter_modules(network.backbone)
        )
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), spec.observation)
        jax.eval_shape(self.q_values, Network(params, network_state), one)

    def init(self, key: Array) -> AgentState:
        """The state before the first update, with parameters drawn from `key`."""
        _, params, network_state = networks.functional(self._make_network(nnx.Rngs(key)))
        # The target's parameters are copies, because a caller may donate this state, and no buffer can be donated
        # twice.
        target_params, target_network_state = jax.tree.map(jnp.copy, (params, network_state))
        opt_state = self._optimizer.init(params)
        return AgentState(
            params, target_params, network_state, target_network_state, opt_state, jnp.zeros((), jnp.int32)
        )

    def acting(self, state: AgentState, *, target: bool = False) -> Network:
        """The online network, or the target network."""
        return state.target if target else state.online

    def q_values(
        self, acting: Network, observations: PyTree[Shaped[ArrayLike, "b ..."]]
    ) -> Float[Array, "b a"]:
        """The value of every action, in the units of the support."""
        outputs, _, _ = self._apply(acting.params, acting.state, observations, train=False)
        return self.head.value(outputs)

    def act(
        self,
        acting: Network,
        observations: PyTree[Shaped[ArrayLike, "b ..."]],
        key: Array,
        epsilon: ArrayLike,
    ) -> Int[Array, "b"]:
        """Epsilon-greedy actions.

        Args:
          acting: from `acting`.
          observations: [B, *observation].
          key: random key of this step.
          epsilon: [], the probability of a uniformly random action.

        Returns:
          int32 [B].
        """
        q_values = self.q_values(acting, observations)
        greedy = jnp.argmax(q_values, axis=-1)
        explore_key, action_key = jax.random.split(key)
        random = jax.random.randint(action_key, greedy.shape, 0, q_values.shape[-1])
        explore = jax.random.uniform(explore_key, greedy.shape) < epsilon
        return jnp.where(explore, random, greedy).astype(jnp.int32)

    def update(
        self, state: AgentState, batch: Transition, key: Array, *, mean: Mean = identity
    ) -> tuple[AgentState, UpdateInfo]:
        """One gradient step. Every `target_period` updates the target network is updated too.

        Args:
          state: the state before the update.
          batch: B transitions.
          key: unused, because this update draws no random numbers.
          mean: averages gradients, metrics and network state over the devices that share the batch.

        Returns:
          The new state, and the metrics and priorities (the head's `td_divergence`).
        """
        del key
        target, backup = self.targets(state, batch)
        (loss, (network_state, chosen, metrics)), gradients = jax.value_and_grad(self.loss, has_aux=True)(
            state.params, state.network_state, batch, target
        )
        divergence = self._divergence(chosen, target)
        metrics = {
            "loss": loss,
            "td_divergence": jnp.mean(divergence),
            "q_mean": jnp.mean(self.head.value(chosen)),
            "clip_fraction": self.head.clip_fraction(backup),
            **metrics,
        }
        gradients, network_state, metrics = mean((gradients, network_state, metrics))
        return self._step(state, gradients, network_state), UpdateInfo(metrics, divergence)

    def loss(
        self, params: PyTree, network_state: PyTree, batch: Transition, target: PyTree
    ) -> tuple[Float[Array, ""], tuple[PyTree, Array, dict[str, Array]]]:
        """The loss that is differentiated.

        Args:
          params: the online network's parameters.
          network_state: the online network's state.
          batch: B transitions.
          target: the head's target, from `targets`.

        Returns:
          The loss, and (the network's new state, the outputs [B, n] of the actions taken, further metrics by name).
        """
        raise NotImplementedError

    def targets(self, state: AgentState, batch: Transition) -> tuple[PyTree, Float[Array, "b"]]:
        """The head's target for each transition, and the scalar r + discount * Q(s', a') that it encodes."""
        next_outputs, _, _ = self._apply(
            state.target_params, state.target_network_state, batch.next_observation, train=False
        )
        chosen_next = heads.select(next_outputs, self._next_action(state, batch, next_outputs))
        target = self.head.td_target(chosen_next, batch.reward, batch.discount)
        return target, jnp.asarray(batch.reward + batch.discount * self.head.value(chosen_next))

    def _inputs(self, batch: Transition) -> tuple[PyTree, ...]:
        """The network's inputs for a batch."""
        return (batch.observation,)

    def _actions(self, batch: Transition) -> Int[Array, "b *t"]:
        """The recorded actions, as indices of the network's outputs."""
        return jnp.asarray(batch.action)

    def _divergence(self, chosen: Float[Array, "b n"], target: PyTree) -> Float[Array, "b"]:
        """The divergence of the chosen outputs from the target, which is the priority of a transition."""
        return self.head.td_divergence(chosen, target)

    def diagnose(self, state: AgentState, batch: Transition, held_out: Transition) -> dict[str, Array]:
        """Metrics of the network before an update. It does not change the state.

        Args:
          state: the state before the update.
          batch: the update's transitions.
          held_out: transitions that no update has used. Those with weight 0 are ignored.

        Returns:
          Scalars by name: gradient_norm (before clipping) and td_error of the update's weighted batch;
          held_out_td_error; `diagnostics.feature_metrics` of the held-out observations; and metrics of the values that
          the network's modules sow for them, such as the share of dormant units.
        """
        target, backup = self.targets(state, batch)
        gradients, (_, chosen, _) = jax.grad(self.loss, has_aux=True)(
            state.params, state.network_state, batch, target
        )
        outputs, _, intermediates = self._apply(
            state.params, state.network_state, held_out.observation, train=False, capture=True
        )
        held_out_values = self.head.value(heads.select(outputs, held_out.action))
        _, held_out_backup = self.targets(state, held_out)
        return {
            "gradient_norm": diagnostics.global_norm(gradients),
            "td_error": diagnostics.td_error(self.head.value(chosen), backup, batch.weight),
            "held_out_td_error": diagnostics.td_error(held_out_values, held_out_backup, held_out.weight),
            **diagnostics.feature_metrics(*intermediates["features"]),
            **diagnostics.shown(intermediates, causal=self._causal),
        }

    def _check(self, spec: Spec) -> int:
        """The number of actions. Raises a ValueError if this agent does not support the observations or actions."""
        name = type(self).__name__
        if spec.num_actions is None or spec.action.shape:
            action = f"{spec.action.dtype} {list(spec.action.shape)}"
            raise ValueError(f"{name} needs one discrete action at a time, not {action}")
        fields = ", ".join(spec.observation) if isinstance(spec.observation, dict) else "several arrays"
        several_games = isinstance(spec.observation, dict) and spec.observation.keys() == {"frames", "game"}
        if self._games and not several_games:
            seen = "one array" if isinstance(spec.observation, jax.ShapeDtypeStruct) else f"a tree ({fields})"
            raise ValueError(f"games={self._games} needs observations with frames and game, not {seen}")
        if several_games and not self._games:
            raise ValueError(
                f"{name} needs the option games, the number of games, for observations with frames and game"
            )
        if not several_games and not isinstance(spec.observation, jax.ShapeDtypeStruct):
            raise ValueError(f"{name} needs observations that are one array, not a tree ({fields})")
        return spec.num_actions

    def _make_network(self, rngs: nnx.Rngs) -> Any:
        """The network. Its attribute `backbone` is the result of `make_backbone`."""
        seen, num_actions = self.spec.observation, self._num_actions
        backbone = self._make_backbone((seen["frames"] if self._games else seen).shape, rngs=rngs)
        if self._games:
            return networks.MultiGameQNetwork(backbone, self.head, num_actions, self._games, rngs=rngs)
        return networks.QNetwork(backbone, self.head, num_actions, dueling=self._dueling, rngs=rngs)

    def _next_action(
        self, state: AgentState, batch: Transition, next_outputs: Float[Array, "b a n"]
    ) -> Int[ArrayLike, "b"]:
        """The action a' to bootstrap from: greedy by the target network, or by the online network if `double`."""
        if self._double:
            return jnp.argmax(self.q_values(state.online, batch.next_observation), axis=-1)
        return jnp.argmax(self.head.value(next_outputs), axis=-1)

    def _step(self, state: AgentState, gradients: PyTree, network_state: PyTree) -> AgentState:
        """The optimiser's step, and every `target_period` updates that of the target network."""
        changes, opt_state = self._optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        step = state.step + 1
        online, target_network = (params, network_state), (state.target_params, state.target_network_state)
        if self._target_tau < 1:
            online = jax.tree.map(self._polyak, online, target_network)
        target_params, target_network_state = optax.periodic_update(
            online, target_network, step, self._target_period
        )
        return AgentState(params, target_params, network_state, target_network_state, opt_state, step)

    def _polyak(self, online: Any, target: Any) -> Any:
        """One Polyak step for one leaf. Leaves that cannot be averaged (random keys, counters) are copied."""
        if not jnp.issubdtype(online.dtype, jnp.floating):
            return online
        return self._target_tau * online + (1 - self._target_tau) * target
