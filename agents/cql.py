"""CQL (Kumar et al. 2020) with any value head, for recorded data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from rlcls import heads
from rlcls._errors import check_choice
from rlcls.spec import Spec
from rlcls.transition import Transition

from .q_learning import AgentState, QLearning

# For each `target`: the optional field of `Transition` that it needs.
_NEEDED = {"q_learning": None, "sarsa": "next_action", "monte_carlo": "return_to_go"}


class CQL(QLearning):
    """Conservative Q-learning with discrete actions: `rlcls.agents.base.Agent`.

    loss = mean_i w_i * (td_loss(outputs(s_i, a_i), target_i) + alpha * gap_i) with
    gap_i = log sum_a exp Q(s_i, a) - Q(s_i, a_i)

    td_loss is that of the head, and Q are decoded values. The gap is the cross-entropy of the recorded action under a
    softmax of the values. It lowers the values of actions that are not in the data.

    `target` selects the target of td_loss:

      q_learning   r + discount * max_a Q_target(s', a)
      sarsa        r + discount * Q_target(s', a'), with a' the recorded `next_action`
      monte_carlo  the recorded `return_to_go`

    Args:
      spec: as in `QLearning`.
      make_backbone: as in `QLearning`.
      head: as in `QLearning`.
      alpha: weight of the gap, at least 0. Its units are those of td_loss divided by those of a value, so a good alpha
        depends on the head and on the scale of rewards.
      target: q_learning, sarsa or monte_carlo. `double` only affects q_learning.
      **options: the options of `QLearning`.

    Raises:
      ValueError: an option is out of range; spec, backbone and head do not fit together; or, when `update` is traced,
        the batches lack the field that `target` needs.

    Source: Kumar et al. 2020, equation 4, as CQL(H); with a categorical head, Farebrother et al. 2024, equation 2.4.

    >>> from rlcls import networks
    >>> spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32), 2, None)
    >>> agent = CQL(spec, networks.MLP, heads.MSE(), alpha=0.1)
    >>> zeros, one = jnp.zeros((1, 3)), jnp.ones(1)  # the first values of an observation of zeros are 0
    >>> batch = Transition(zeros, jnp.array([1]), reward=one, discount=0 * one, next_observation=zeros, weight=one)
    >>> _, info = jax.jit(agent.update)(agent.init(jax.random.key(0)), batch, jax.random.key(1))
    >>> round(float(info.metrics["loss"]), 4)  # (0 - 1)**2 + 0.1 * log 2
    1.0693
    """

    def __init__(
        self,
        spec: Spec,
        make_backbone: Callable[..., nnx.Module],
        head: heads.Head,
        *,
        alpha: float = 0.1,
        target: str = "q_learning",
        **options: Any,
    ):
        if alpha < 0:
            raise ValueError(f"alpha must be at least 0, not {alpha}")
        check_choice("target", target, _NEEDED)
        self._alpha, self._target = alpha, target
        super().__init__(spec, make_backbone, head, **options)

    def loss(
        self, params: PyTree, network_state: PyTree, batch: Transition, target: PyTree
    ) -> tuple[Float[Array, ""], tuple[PyTree, Array, dict[str, Array]]]:
        outputs, network_state, _ = self._apply(params, network_state, batch.observation, train=True)
        chosen = heads.select(outputs, batch.action)
        gap = jax.nn.logsumexp(self.head.value(outputs), axis=-1) - self.head.value(chosen)
        loss = jnp.mean(batch.weight * (self.head.td_loss(chosen, target) + self._alpha * gap))
        return loss, (network_state, chosen, {"cql_gap": jnp.mean(gap)})

    def targets(self, state: AgentState, batch: Transition) -> tuple[PyTree, Float[Array, "b"]]:
        """The head's target for each transition, and the scalar target that it encodes."""
        needed = _NEEDED[self._target]
        if needed and getattr(batch, needed) is None:
            raise ValueError(
                f"target={self._target} needs batches with {needed}, but these have none: use a dataset with it, "
                "or target=q_learning"
            )
        if self._target != "monte_carlo":
            return super().targets(state, batch)
        # With a discount of 0 the head's target depends on the return only and ignores the next outputs.
        returns = jnp.asarray(batch.return_to_go)
        ignored = jnp.zeros((*returns.shape, self.head.num_outputs))
        return self.head.td_target(ignored, returns, jnp.zeros_like(returns)), returns

    def _next_action(
        self, state: AgentState, batch: Transition, next_outputs: Float[Array, "b a n"]
    ) -> Int[ArrayLike, "b"]:
        if self._target == "sarsa":
            return jnp.asarray(batch.next_action)
        return super()._next_action(state, batch, next_outputs)
