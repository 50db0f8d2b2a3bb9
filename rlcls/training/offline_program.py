"""One lane of a compiled loop that learns from recorded data: an agent and its updates, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, Key, PyTree, UInt32

from rlcls.agents.base import Agent
from rlcls.datasets import ArrayTransitions, Transitions

from . import xla
from .learner import all_finite


class OfflineLane(NamedTuple):
    """Everything that an update of one seed changes.

    Attributes:
      agent: the agent's state.
      sums: the metrics of the updates since `clear`, added up by name.
    """

    agent: PyTree[Array]
    sums: dict[str, Float32[Array, ""]]

    @property
    def episodes(self) -> None:
        """None, because an offline lane plays no episodes."""


class OfflineKeys(NamedTuple):
    """The random keys of a lane; an update folds its number into them."""

    update: Key[Array, ""]
    sample: Key[Array, ""]


class OfflineProgram:
    """The pure functions of one lane. Each iteration is one update; see `Program`.

    The data are an argument of the program, and lanes share every array that is equal for all of them. Only noisy
    rewards with their returns, and the rows to sample if episodes are held out, differ between lanes.

    Args:
      agent: the agent that learns.
      data: for each seed the transitions to sample from, which `Transitions.with_seed` returns.
      batch_size: transitions in an update.
      act_with_target: whether the target network is evaluated instead of the online network.
      vmap: whether lanes advance together; see `Program`.

    Attributes:
      agent: the agent.
      data: the transitions of each seed.
      identity: the identity of the data.

    Raises:
      ValueError: an option is out of range.
    """

    unit = "updates"
    units = updates = 1
    warm_iterations = 0

    def __init__(
        self,
        agent: Agent[Any],
        data: Mapping[int, Transitions],
        *,
        batch_size: int,
        act_with_target: bool = False,
        vmap: bool | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.agent, self.data = agent, data
        self._batch_size, self._target = batch_size, act_with_target
        self.vmap = jax.default_backend() != "cpu" if vmap is None else vmap
        first = next(iter(data.values()))
        self.identity: dict[str, str] | None = first.identity
        self.name = next(iter(self.identity))
        self._sampler = ArrayTransitions.of(first)
        different = {id(each): each.arrays() for each in data.values()}
        self._columns = {seed: different[id(each)] for seed, each in data.items()}

    def columns(self, seed: int) -> dict[str, np.ndarray]:
        """The host's arrays that the lane of a seed reads."""
        return self._columns[seed]

    def init(self, seed: UInt32[Array, ""]) -> OfflineLane:
        """The lane of a seed before its first update."""
        key = jax.random.key(seed)
        agent = self.agent.init(jax.random.fold_in(key, int(xla.Use.INIT)))
        columns = {
            name: jax.ShapeDtypeStruct(column.shape, column.dtype)
            for name, column in next(iter(self._columns.values())).items()
        }
        batch, _ = jax.eval_shape(
            lambda columns: self._sampler.sample(columns, self._batch_size, key), columns
        )
        _, info = jax.eval_shape(self.agent.update, agent, batch, key)
        return OfflineLane(agent, {name: jnp.zeros(()) for name in info.metrics})

    def keys(self, seed: UInt32[Array, ""]) -> OfflineKeys:
        """The keys of a seed's lane."""
        key = jax.random.key(seed)
        return OfflineKeys(*(jax.random.fold_in(key, int(use)) for use in (xla.Use.UPDATE, xla.Use.SAMPLE)))

    def iterate(
        self, lane: OfflineLane, keys: OfflineKeys, iteration: Int32[Array, ""], columns: dict[str, Array]
    ) -> OfflineLane:
        """The lane after an update."""
        key = jax.random.fold_in(keys.sample, iteration)
        batch, _ = self._sampler.sample(columns, self._batch_size, key)
        # Without the barrier XLA gathers from the data again wherever the batch is read.
        batch = lax.optimization_barrier(batch)
        agent, info = self.agent.update(lane.agent, batch, jax.random.fold_in(keys.update, iteration))
        return OfflineLane(agent, {name: total + info.metrics[name] for name, total in lane.sums.items()})

    def acting(self, lane: OfflineLane) -> PyTree[Array]:
        """The part of the lane's agent that acts in evaluations."""
        return self.agent.acting(lane.agent, target=self._target)

    def is_sound(self, lane: OfflineLane) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        """Whether metrics and parameters are finite; and True, because `Transitions.arrays` has checked the data."""
        return all_finite((lane.sums, self.agent.acting(lane.agent))), jnp.ones((), bool)

    def clear(self, lane: OfflineLane) -> OfflineLane:
        """The lane with its sums at zero."""
        return lane._replace(sums=jax.tree.map(jnp.zeros_like, lane.sums))
