"""One lane of a compiled loop: a seed's agent, environments and replay as one pytree, and its pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, Key, PyTree, UInt32

from rlcls.agents.base import Agent
from rlcls.envs.autoreset import Autoreset, Playing
from rlcls.envs.jax_vector import JaxVectorEnv
from rlcls.replay.arrays import ArrayReplay, Ring

from . import xla
from .learner import all_finite


class Episodes(NamedTuple):
    """The episodes of a lane.

    Attributes:
      returns: [N], summed rewards of the episodes under way.
      lengths: [N], steps of the episodes under way.
      finished: episodes finished so far.
      recent: count, summed returns and summed lengths of the episodes finished since `clear`.
      sound: whether all rewards and observations were finite so far.
    """

    returns: Float32[Array, "n"]
    lengths: Int32[Array, "n"]
    finished: Int32[Array, ""]
    recent: tuple[Int32[Array, ""], Float32[Array, ""], Float32[Array, ""]]
    sound: Bool[Array, ""]


class Lane(NamedTuple):
    """Everything that a step or an update of one seed changes.

    Attributes:
      agent: the agent's state.
      playing: the environments, [N, ...].
      starts: [N], whether the present observation is the first of its episode.
      ring: the replay's contents.
      episodes: returns of the episodes.
      sums: the metrics of the updates since `clear`, added up by name.
    """

    agent: PyTree[Array]
    playing: Playing
    starts: Bool[Array, "n"]
    ring: Ring
    episodes: Episodes
    sums: dict[str, Float32[Array, ""]]


class Keys(NamedTuple):
    """The random keys of a lane; a step or an update folds its number into them."""

    act: Key[Array, ""]
    update: Key[Array, ""]
    sample: Key[Array, ""]
    noise: Key[Array, ""]


class Program:
    """The pure functions of one lane.

    An *iteration* plays `steps` vector steps and then makes `updates` updates. One of the two numbers is 1, so that
    there is one update every `update_period` agent steps. All lanes count their iterations together, from 0.

    Args:
      agent: the agent that learns.
      env: the environments. Only its `JaxEnv`, `num_envs` and `frame_stack` are used.
      replay: the replay's options.
      exploration: its epsilon(agent steps since learning began) accepts a traced number.
      batch_size: transitions in an update.
      update_period: agent steps between updates; a multiple of the number of environments, or a divisor of it.
      act_with_target: whether the target network acts instead of the online network.
      vmap: whether lanes advance together as one batched computation, instead of one after another. None means True
        except on a CPU, where it is slower.

    Attributes:
      unit: the name of what a run's `steps` count.
      units: agent steps in an iteration.
      updates: updates in an iteration.
      warm_iterations: iterations before the first update.
      name: the name of the environment.
      identity: None, because there are no recorded data.

    Raises:
      ValueError: an option is out of range.
    """

    unit = "agent_steps"
    identity: dict[str, str] | None = None

    def __init__(
        self,
        agent: Agent[Any],
        env: JaxVectorEnv,
        replay: ArrayReplay,
        *,
        exploration: Any,
        batch_size: int,
        update_period: int,
        act_with_target: bool = False,
        vmap: bool | None = None,
    ):
        for name, value in (("batch_size", batch_size), ("update_period", update_period)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if env.num_envs % update_period and update_period % env.num_envs:
            raise ValueError(
                f"update_period ({update_period}) must be a multiple or a divisor of env.num_envs ({env.num_envs}), so "
                "that equally many steps come before each update"
            )
        self.agent, self.env, self.replay = agent, env, replay
        self.vmap = jax.default_backend() != "cpu" if vmap is None else vmap
        self._episodes = Autoreset(env.env, env.frame_stack)
        self._exploration, self._batch_size, self._target = exploration, batch_size, act_with_target
        self.name = env.name
        self.steps = max(1, update_period // env.num_envs)
        self.updates = max(1, env.num_envs // update_period)
        self.warm_iterations = -(-max(replay.min_size, replay.least_rows * env.num_envs) // self.units)

    @property
    def units(self) -> int:
        """Agent steps of an iteration."""
        return self.steps * self.env.num_envs

    def columns(self, seed: int) -> dict[str, np.ndarray]:
        """The arrays that the lane of a seed reads: none, since it learns from what it plays."""
        return {}

    def epsilon(self, agent_steps: Any) -> Any:
        """The probability of a random action."""
        return self._exploration.epsilon(agent_steps - self.replay.min_size)

    def init(self, seed: UInt32[Array, ""]) -> Lane:
        """The lane of a seed before its first iteration."""
        key, n = jax.random.key(seed), self.env.num_envs
        agent = self.agent.init(jax.random.fold_in(key, int(xla.Use.INIT)))
        env_key = jax.random.fold_in(key, int(xla.Use.ENVIRONMENT))
        keys = jax.vmap(lambda number: jax.random.fold_in(env_key, number))(jnp.arange(n))
        ring = self.replay.init()
        zero = jnp.zeros((), jnp.int32)
        episodes = Episodes(
            jnp.zeros(n),
            jnp.zeros(n, jnp.int32),
            zero,
            (zero, jnp.zeros(()), jnp.zeros(())),
            jnp.ones((), bool),
        )
        batch, _ = jax.eval_shape(lambda: self.replay.sample(ring, 0, self._batch_size, key))
        _, info = jax.eval_shape(self.agent.update, agent, batch, key)
        sums = {name: jnp.zeros(()) for name in info.metrics}
        playing = jax.vmap(self._episodes.begin)(keys)
        lane = Lane(agent, playing, jnp.ones(n, bool), ring, episodes, sums)
        # An environment may start with Python numbers, whose types are weak. A loop's state must keep its types.
        return jax.tree.map(_strongly_typed, lane)

    def keys(self, seed: UInt32[Array, ""]) -> Keys:
        """The keys of a seed's lane."""
        key = jax.random.key(seed)
        uses = (xla.Use.ACT, xla.Use.UPDATE, xla.Use.SAMPLE, xla.Use.NOISE)
        return Keys(*(jax.random.fold_in(key, int(use)) for use in uses))

    def iterate(self, lane: Lane, keys: Keys, iteration: Int32[Array, ""], columns: dict[str, Array]) -> Lane:
        """The lane after an iteration, which makes no updates during the first `warm_iterations`."""
        lane = _repeat(self.steps, iteration, lambda lane, number: self._step(lane, keys, number), lane)
        rows, first = (iteration + 1) * self.steps, iteration - self.warm_iterations

        def learn(changing: Any) -> Any:
            return _repeat(
                self.updates,
                first,
                lambda each, number: self._update(lane, each, keys, rows, number),
                changing,
            )

        # The ring's columns are not in `changing`, so that the branches return no array of their size.
        changing = lane.agent, lane.ring.weights, lane.sums
        agent, weights, sums = lax.cond(first >= 0, learn, lambda changing: changing, changing)
        return lane._replace(agent=agent, ring=lane.ring._replace(weights=weights), sums=sums)

    def acting(self, lane: Lane) -> PyTree[Array]:
        """The part of the lane's agent that acts."""
        return self.agent.acting(lane.agent, target=self._target)

    def is_sound(self, lane: Lane) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        """Whether the metrics and the parameters are finite, and whether the rewards and observations were."""
        return all_finite((lane.sums, self.agent.acting(lane.agent))), lane.episodes.sound

    def clear(self, lane: Lane) -> Lane:
        """The lane with its sums at zero."""
        sums, recent = jax.tree.map(jnp.zeros_like, (lane.sums, lane.episodes.recent))
        return lane._replace(sums=sums, episodes=lane.episodes._replace(recent=recent))

    def _step(self, lane: Lane, keys: Keys, number: Int32[Array, ""]) -> Lane:
        """The lane after one vector step, whose row is in the ring."""
        observations = lane.playing.observation
        epsilon = self.epsilon(number * self.env.num_envs)
        key = jax.random.fold_in(keys.act, number)
        actions = self.agent.act(self.acting(lane), observations, key, epsilon)
        playing, outcome = jax.vmap(self._episodes.step)(lane.playing, actions)
        row = observations, actions, outcome.reward, outcome.terminated, lane.starts
        ring = self.replay.add(lane.ring, number, *row, jax.random.fold_in(keys.noise, number))
        returns, lengths = lane.episodes.returns + outcome.reward, lane.episodes.lengths + ~outcome.starts
        over = outcome.terminated | outcome.truncated
        count, total, steps = lane.episodes.recent
        recent = (
            count + over.sum(),
            total + jnp.sum(jnp.where(over, returns, 0.0)),
            steps + jnp.sum(jnp.where(over, lengths, 0)),
        )
        episodes = Episodes(
            jnp.where(over, 0.0, returns),
            jnp.where(over, 0, lengths),
            lane.episodes.finished + over.sum(),
            recent,
            lane.episodes.sound & all_finite((outcome.reward, playing.observation)),
        )
        return lane._replace(playing=playing, starts=outcome.starts, ring=ring, episodes=episodes)

    def _update(self, lane: Lane, changing: Any, keys: Keys, rows: Array, number: Array) -> Any:
        """The agent, the ring's weights and the sums (`changing`) after an update from the first `rows` rows."""
        agent, weights, sums = changing
        ring = lane.ring._replace(weights=weights)
        key = jax.random.fold_in(keys.sample, number)
        batch, sampled = self.replay.sample(ring, rows, self._batch_size, key)
        # Without the barrier XLA gathers from the ring again wherever the batch is read.
        batch = lax.optimization_barrier(batch)
        agent, info = self.agent.update(agent, batch, jax.random.fold_in(keys.update, number))
        if info.priorities is not None:
            weights = self.replay.set_priorities(weights, sampled, info.priorities)
        return agent, weights, {name: total + info.metrics[name] for name, total in sums.items()}


def _strongly_typed(leaf: Array) -> Array:
    """The same array without JAX's weak type."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else lax.convert_element_type(leaf, leaf.dtype)


def _repeat(times: int, block: Array, function: Callable[[Any, Array], Any], carry: Any) -> Any:
    """Applies function(carry, number) for the numbers block * times, ..., block * times + times - 1."""
    if times == 1:
        return function(carry, block)
    # A loop, because a program with several unrolled environment steps compiles slowly.
    return lax.fori_loop(0, times, lambda i, carry: function(carry, block * times + i), carry)
