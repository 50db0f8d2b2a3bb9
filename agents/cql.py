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

# The field of `Transition` that a target needs besides those that every batch has.
_NEEDED = {"q_learning": None, "sarsa": "next_action", "monte_carlo": "return_to_go"}


class CQL(QLearning):
    """Conservative Q-learning from discrete actions: `rlcls.agents.base.Agent`.

    loss = mean_i w_i * (td_loss(outputs(s_i, a_i), target_i) + alpha * gap_i), where the head decides what td_loss is
    and gap_i = log sum_a exp Q(s_i, a) - Q(s_i, a_i) is made of decoded values. The gap is the cross-entropy of the
    recorded action under a softmax of the values: it lowers the values of actions that the data does not show.

    `target` chooses what td_loss compares with:

      q_learning   r + discount * max_a Q_target(s', a)
      sarsa        r + discount * Q_target(s', a'), with a' the recorded `next_action`
      monte_carlo  the recorded `return_to_go`

    Args:
      spec: as in `QLearning`.
      make_backbone: as in `QLearning`.
      head: as in `QLearning`.
      alpha: weight of the gap, at least 0. It has the units of td_loss over those of a value, so it means something
        else with every head, reward scale and factor in front of td_loss.
      target: q_learning, sarsa or monte_carlo. Only the first one reads `double`.
      **options: the options of `QLearning`.

    Raises:
      ValueError: an option is out of range, spec, backbone and head do not fit together, or (when `update` is traced)
        the batches have no field that `target` needs.

    Source: Kumar et al. 2020, equation 4, as CQL(H); with a categorical head, Farebrother et al. 2024, equation 2.4.
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
        """The head's target, and the scalar that it stands for."""
        needed = _NEEDED[self._target]
        if needed and getattr(batch, needed) is None:
            raise ValueError(
                f"target={self._target} needs batches with {needed}, and these have none: take a data set that records "
                "it, or target=q_learning"
            )
        if self._target != "monte_carlo":
            return super().targets(state, batch)
        # With a discount of 0 the head's target is that of the return alone, whatever the next outputs are.
        returns = jnp.asarray(batch.return_to_go)
        ignored = jnp.zeros((*returns.shape, self.head.num_outputs))
        return self.head.td_target(ignored, returns, jnp.zeros_like(returns)), returns

    def _next_action(
        self, state: AgentState, batch: Transition, next_outputs: Float[Array, "b a n"]
    ) -> Int[ArrayLike, "b"]:
        if self._target == "sarsa":
            return jnp.asarray(batch.next_action)
        return super()._next_action(state, batch, next_outputs)
