"""Evaluates values on recorded transitions that are held out from training, without playing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rlcls.agents import Agent, QTransformer
from rlcls.agents.bc import Cloning
from rlcls.envs.base import HostEnv
from rlcls.training import xla
from rlcls.transition import Transition

from .evaluator import Tick


class HeldOutEvaluator:
    """Means over held-out transitions of a dataset: an `rlcls.evaluation.Evaluator` that plays no episodes.

    With Q the values of the acting network and (s, a, r, discount, s') a recorded transition:

      td_error   |Q(s, a) - (r + discount * max_b Q(s', b))|, in units of value
      cql_gap    log sum_b exp Q(s, b) - Q(s, a), in units of value (Kumar et al. 2020, equation 4)
      agreement  share of transitions in which a is the greedy action

    Both values of the TD error come from the acting network, so it does not depend on the target network. The
    transitions are the same in every evaluation.

    Args:
      agent: an agent with `q_values(acting, observations)`, such as `rlcls.agents.q_learning.QLearning`.
      env: unused.
      seed: unused, because the dataset chooses the held-out episodes.
      data: a dataset with `held_out` and `at`, such as `rlcls.datasets.Transitions` and `Mixture`.
      transitions: the largest number of transitions to evaluate.
      batch_size: transitions per batch, which limits the memory.

    Raises:
      ValueError: an option is out of range, there is no dataset, or it has no held-out episodes.
    """

    plays = False

    def __init__(
        self,
        agent: Agent[Any],
        env: HostEnv,
        *,
        seed: int,
        data: Any,
        transitions: int = 4096,
        batch_size: int = 256,
    ):
        if transitions < 1 or batch_size < 1:
            raise ValueError(f"transitions ({transitions}) and batch_size ({batch_size}) must be at least 1")
        if not hasattr(data, "held_out"):
            raise ValueError("held-out transitions need data= and data.held_out, a share of its episodes")
        if not hasattr(agent, "q_values") or isinstance(agent, (Cloning, QTransformer)):
            raise ValueError(f"{type(agent).__name__} has no values of single actions to score")
        self._data, self._batch_size = data, batch_size
        self._where = data.held_out(transitions)
        if not len(self._where[0]):
            raise ValueError(
                "data.held_out keeps no episode out of training; give data.held_out=0.05, or more if there are few "
                "episodes"
            )

        def sums(acting: PyTree, batch: Transition) -> dict[str, Float[Array, ""]]:
            values = agent.q_values(acting, batch.observation)  # type: ignore[attr-defined]
            next_values = agent.q_values(acting, batch.next_observation)  # type: ignore[attr-defined]
            chosen = jnp.take_along_axis(values, jnp.asarray(batch.action)[:, None], axis=-1)[:, 0]
            backup = batch.reward + batch.discount * next_values.max(axis=-1)
            means = {
                "td_error": jnp.abs(chosen - backup),
                "cql_gap": jax.nn.logsumexp(values, axis=-1) - chosen,
                "agreement": values.argmax(axis=-1) == batch.action,
            }
            return {name: jnp.sum(batch.weight * each) for name, each in means.items()}

        self._sums = xla.jit(sums)

    def __call__(self, acting: PyTree, number: int, tick: Tick) -> dict[str, Any]:
        """The means by name, and the number of transitions. `number` has no effect."""
        count = len(self._where[0])
        totals = dict.fromkeys(("td_error", "cql_gap", "agreement"), 0.0)
        for first in range(0, count, self._batch_size):
            # The last batch is filled with transitions of weight 0, so that all batches have one shape.
            places = np.arange(first, first + self._batch_size)
            batch = self._data.at(*(origin[np.minimum(places, count - 1)] for origin in self._where))
            batch = batch._replace(weight=(places < count).astype(np.float32))
            for name, total in jax.device_get(self._sums(acting, jax.device_put(batch))).items():
                totals[name] += float(total)
            tick(min(first + self._batch_size, count), count)
        return {name: total / count for name, total in totals.items()} | {"transitions": count}
