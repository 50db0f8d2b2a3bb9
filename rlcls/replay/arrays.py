"""A replay as pure functions of arrays on the device, for loops that are one compiled program.

It keeps and samples what `FrameReplay` does: the ring, the n-step sums, the stacks of frames and the priorities are the
same, and the tests compare the two row by row.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, Shaped

from rlcls.envs.jax_vector import JaxVectorEnv
from rlcls.transition import Transition

_TRIES = 4  # draws from which a uniform sample takes the first that starts a transition


class Weights(NamedTuple):
    """Sampling weights in blocks of whole rows, with their sums.

    Attributes:
      values: [blocks, rows of a block * N], 0 where no transition starts.
      sums: [blocks].
      largest: the largest priority so far, which new rows get.
    """

    values: Float32[Array, "m k"]
    sums: Float32[Array, "m"]
    largest: Float32[Array, ""]


class Ring(NamedTuple):
    """The contents of an `ArrayReplay`.

    Attributes:
      frames: [T, N, F], an observation (of stacked frames the newest) as F numbers.
      actions: [T, N], taken at these observations.
      rewards: [T, N], received for the actions, clipped and noisy as they are learnt.
      terminals: [T, N], whether the action ended the episode; False where a limit cut it.
      starts: [T, N], whether the observation was the first of its episode.
      weights: None where samples are uniform.
    """

    frames: Shaped[Array, "t n f"]
    actions: Int32[Array, "t n"]
    rewards: Float32[Array, "t n"]
    terminals: Bool[Array, "t n"]
    starts: Bool[Array, "t n"]
    weights: Weights | None


class Sampled(NamedTuple):
    """The origin of a batch: the stream of each transition, and the slot of its row in the ring."""

    streams: Int32[Array, "b"]
    slots: Int32[Array, "b"]


@dataclasses.dataclass(frozen=True)
class ArrayReplay:
    """Options of a replay whose contents are a `Ring`.

    `rows`, the number of rows added so far, is an argument of each method. A loop that vmaps over seeds leaves it
    unbatched, so that a row is written in place.

    Attributes:
      num_streams: N, environments that step together.
      capacity: agent steps held; a multiple of N is used, with priorities a whole number of blocks of rows.
      frame_shape: shape of what a row stores.
      frame_dtype: its dtype.
      stack: frames in an observation; 0 stores observations whole.
      min_size: agent steps before the first update; the loop reads it.
      n_step: rewards summed before bootstrapping.
      gamma: discount of one agent step.
      reward_clip: rewards are clipped to this magnitude before they are stored; 0 never clips.
      reward_noise: a uniform number between 0 and this is added to each reward then.
      prioritized: samples in proportion to priority**priority_exponent, in strata, as `FrameReplay`.
      priority_exponent: 0 samples uniformly.
      importance_exponent: exponent of the importance weights.

    Raises:
      ValueError: an option is out of range.
    """

    num_streams: int
    capacity: int
    frame_shape: tuple[int, ...]
    frame_dtype: str = "uint8"
    stack: int = 0
    min_size: int = 0
    n_step: int = 1
    gamma: float = 0.99
    reward_clip: float = 0.0
    reward_noise: float = 0.0
    prioritized: bool = False
    priority_exponent: float = 0.5
    importance_exponent: float = 0.5

    def __post_init__(self) -> None:
        for name in ("num_streams", "n_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("reward_clip", "reward_noise", "priority_exponent", "importance_exponent"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be between 0 and 1, not {self.gamma}")
        if self.capacity < self.min_size:
            raise ValueError(f"capacity ({self.capacity}) must be at least min_size ({self.min_size})")
        if self.length < self.least_rows:
            raise ValueError(
                f"the replay's capacity ({self.capacity}) must hold at least {self.least_rows} steps of each of "
                f"{self.num_streams} environments"
            )

    @classmethod
    def of(cls, env: JaxVectorEnv, capacity: int, **options: Any) -> ArrayReplay:
        """A replay for what `env` shows; the options are the attributes from `min_size` on.

        Raises:
          ValueError: observations are trees, actions are continuous, or an option is out of range.
        """
        observation, stack = env.spec.observation, env.frame_stack
        is_array = isinstance(observation, jax.ShapeDtypeStruct)
        if not is_array or env.spec.num_actions is None or env.spec.action.shape:
            raise ValueError("this replay stores observations of one array and discrete actions")
        shape = tuple(observation.shape[1:] if stack else observation.shape)
        return cls(env.num_envs, capacity, shape, np.dtype(observation.dtype).name, stack, **options)

    @property
    def length(self) -> int:
        """T, the rows of the ring."""
        length = self.capacity // self.num_streams
        return length // self._block * self._block if self.prioritized and length else length

    @property
    def least_rows(self) -> int:
        """Rows with which there is always a transition to sample, see `FrameReplay.least_rows`."""
        return max(self.stack - 1, 0) + self.n_step + 2

    @property
    def nbytes(self) -> int:
        """Memory of the ring."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(self.init)))

    def init(self) -> Ring:
        """A ring without rows."""
        shape = self.length, self.num_streams
        weights = None
        if self.prioritized:
            blocks = self.length // self._block
            weights = Weights(
                jnp.zeros((blocks, self._block * self.num_streams)), jnp.zeros(blocks), jnp.ones(())
            )
        return Ring(
            frames=jnp.zeros((*shape, math.prod(self.frame_shape)), self.frame_dtype),
            actions=jnp.zeros(shape, jnp.int32),
            rewards=jnp.zeros(shape),
            terminals=jnp.zeros(shape, bool),
            starts=jnp.zeros(shape, bool),
            weights=weights,
        )

    def add(
        self,
        ring: Ring,
        rows: Int[ArrayLike, ""],
        observations: Shaped[Array, "n *observation"],
        actions: Int[Array, "n"],
        rewards: Float[Array, "n"],
        terminals: Bool[Array, "n"],
        starts: Bool[Array, "n"],
        key: Key[Array, ""] | None = None,
    ) -> Ring:
        """The ring with one more row, in place of the oldest once it is full; the columns are as in `Ring`.

        Args:
          ring: the contents.
          rows: rows added before.
          observations: what was acted on.
          actions: taken there.
          rewards: as the environments gave them.
          terminals: whether the action ended the episode.
          starts: whether the observation began one.
          key: for the noise of the rewards.
        """
        rows = jnp.asarray(rows, jnp.int32)
        if self.reward_clip:
            rewards = jnp.clip(rewards, -self.reward_clip, self.reward_clip)
        if self.reward_noise:
            if key is None:
                raise ValueError("reward_noise needs a key")
            rewards = rewards + self.reward_noise * jax.random.uniform(key, rewards.shape)
        slot = rows % self.length
        frames = observations[:, -1] if self.stack else observations
        ring = ring._replace(
            frames=_write(ring.frames, slot, frames.reshape(self.num_streams, -1)),
            actions=_write(ring.actions, slot, actions),
            rewards=_write(ring.rewards, slot, rewards),
            terminals=_write(ring.terminals, slot, terminals),
            starts=_write(ring.starts, slot, starts | (rows == 0)),  # nothing before the first row is stacked
        )
        if ring.weights is None:
            return ring
        # Rows whose older frames are overwritten can no longer be stacked.
        stale = rows - self.length + max(self.stack - 1, 0)
        weights = self._weigh(ring.weights, stale % self.length, jnp.zeros(self.num_streams), stale >= 0)
        fresh = rows - self.n_step
        ends = ring.starts[(fresh + 1) % self.length]
        weights = self._weigh(weights, fresh % self.length, jnp.where(ends, 0.0, weights.largest), fresh >= 0)
        return ring._replace(weights=weights)

    def sample(
        self, ring: Ring, rows: Int[ArrayLike, ""], size: int, key: Key[Array, ""]
    ) -> tuple[Transition, Sampled]:
        """A batch of the rows that start a transition, which are all but the final observations of episodes.

        Uniform samples are equally likely, but for a share of p**4 of them, where p is the share of final observations
        among the rows: these are neighbours of final observations.

        Args:
          ring: the contents.
          rows: rows added so far, at least `least_rows`.
          size: B.
          key: for the draws.

        Returns:
          The transitions and where they came from.
        """
        rows = jnp.asarray(rows, jnp.int32)
        if ring.weights is None:
            sampled = self._draw_uniformly(ring, rows, size, key)
            importance = jnp.ones(size)
        else:
            sampled, chosen = self._draw_by_weight(ring.weights, size, key)
            importance = chosen**-self.importance_exponent
            importance = importance / importance.max()
        reward, discount, steps = self._accumulate(ring, sampled)
        after = (sampled.slots + steps) % self.length
        batch = Transition(
            observation=self._observations(ring, sampled.streams, sampled.slots),
            action=self._column(ring.actions, sampled.slots, sampled.streams),
            reward=reward,
            discount=discount,
            next_observation=self._observations(ring, sampled.streams, after),
            weight=importance,
        )
        return batch, sampled

    def set_priorities(
        self, weights: Weights | None, sampled: Sampled, divergences: Float[Array, "b"]
    ) -> Weights | None:
        """The ring's weights with the priorities of a batch that was sampled; see `FrameReplay.set_priorities`."""
        if weights is None:
            return None
        values, sums, largest = weights
        priorities = (jnp.maximum(divergences, 0.0) + 1e-10) ** self.priority_exponent
        block, place = self._place(sampled.slots, sampled.streams)
        values = values.at[block, place].set(priorities.astype(values.dtype))
        sums = sums.at[block].set(values[block].sum(-1))
        return Weights(values, sums, jnp.maximum(largest, priorities.max()))

    @property
    def _block(self) -> int:
        """Rows of a block of weights: about as many numbers in a block as there are blocks."""
        length = self.capacity // self.num_streams
        return max(1, min(length, round(math.sqrt(self.capacity) / self.num_streams)))

    def _place(
        self, slots: Int[Array, "*b"], streams: Int[Array, "*b"]
    ) -> tuple[Int[Array, "*b"], Int[Array, "*b"]]:
        """Block, and place in the block, of a row's weight."""
        return slots // self._block, slots % self._block * self.num_streams + streams

    def _weigh(
        self, weights: Weights, slot: Int[Array, ""], row: Float[Array, "n"], holds: Bool[Array, ""]
    ) -> Weights:
        """The weights with those of one row, if it `holds`."""
        block, place = slot // self._block, slot % self._block * self.num_streams
        old = lax.dynamic_slice(weights.values, (block, place), (1, self.num_streams))
        values = lax.dynamic_update_slice(weights.values, jnp.where(holds, row[None], old), (block, place))
        total = lax.dynamic_index_in_dim(values, block, keepdims=False).sum()
        return weights._replace(
            values=values, sums=lax.dynamic_update_index_in_dim(weights.sums, total, block, 0)
        )

    def _draw_uniformly(self, ring: Ring, rows: Int32[Array, ""], size: int, key: Key[Array, ""]) -> Sampled:
        oldest = jnp.maximum(0, rows - self.length + max(self.stack - 1, 0))
        newest = rows - 1 - self.n_step
        span = ((newest - oldest + 1) * self.num_streams).astype(jnp.uint32)
        drawn = (jax.random.bits(key, (_TRIES, size)) % span).astype(jnp.int32)
        row, stream = oldest + drawn // self.num_streams, drawn % self.num_streams
        starts = ring.starts.reshape(-1)
        ends = starts[(row + 1) % self.length * self.num_streams + stream]
        first = jnp.argmin(ends, axis=0)
        taken = jnp.arange(size)
        row, stream, ends = row[first, taken], stream[first, taken], ends[first, taken]
        # Both neighbours of a final observation start transitions.
        row = row + jnp.where(ends, jnp.where(row > oldest, -1, 1), 0)
        return Sampled(stream, row % self.length)

    def _draw_by_weight(
        self, weights: Weights, size: int, key: Key[Array, ""]
    ) -> tuple[Sampled, Float[Array, "b"]]:
        uniforms = (jax.random.uniform(key, (size,)) + jnp.arange(size)) / size
        block, rest = _find(weights.sums, uniforms)
        within = jax.vmap(lambda values, share: _find(values, share[None])[0][0])
        place = within(weights.values[block], rest)
        slots = block * self._block + place // self.num_streams
        return Sampled(place % self.num_streams, slots), weights.values[block, place]

    def _column(
        self, column: Shaped[Array, "t n"], slots: Int[Array, "*b"], streams: Int[Array, "*#b"]
    ) -> Shaped[Array, "*b"]:
        return column.reshape(-1)[slots * self.num_streams + streams]

    def _accumulate(
        self, ring: Ring, sampled: Sampled
    ) -> tuple[Float[Array, "b"], Float[Array, "b"], Int[Array, "b"]]:
        """Sum of rewards, discount, and how many rows ahead to bootstrap."""
        ahead = jnp.arange(self.n_step)
        slots = (sampled.slots[:, None] + ahead) % self.length
        streams = sampled.streams[:, None]
        rewards = self._column(ring.rewards, slots, streams)
        terminals = self._column(ring.terminals, slots, streams)
        # An episode goes on after step i unless that step was terminal, or row i + 2 begins another.
        over = terminals
        if self.n_step > 1:
            begins = self._column(ring.starts, (slots[:, :-1] + 2) % self.length, streams)
            over = terminals | jnp.pad(begins, ((0, 0), (0, 1)))
        ended_before = jnp.cumsum(over, axis=1) - over > 0
        discounts = (self.gamma ** np.arange(self.n_step + 1)).astype(np.float32)
        reward = jnp.sum(jnp.where(ended_before, 0.0, discounts[:-1] * rewards), axis=1)
        steps = jnp.sum(~ended_before, axis=1)
        ends = jnp.any(terminals & ~ended_before, axis=1)
        discount = jnp.where(ends, 0.0, jnp.asarray(discounts)[steps])
        return reward, discount, steps

    def _observations(
        self, ring: Ring, streams: Int[Array, "b"], slots: Int[Array, "b"]
    ) -> Shaped[Array, "b *observation"]:
        flat = ring.frames.reshape(-1, ring.frames.shape[-1])
        if not self.stack:
            return flat[slots * self.num_streams + streams].reshape(-1, *self.frame_shape)
        back = (slots[:, None] + jnp.arange(1 - self.stack, 1)) % self.length  # oldest frame first
        frames = flat[back * self.num_streams + streams[:, None]]
        # A frame is of another episode if any row after it, up to the sampled one, began one.
        begins = self._column(ring.starts, back[:, 1:], streams[:, None])
        before = jnp.flip(jnp.cumsum(jnp.flip(begins, 1), axis=1), 1) > 0
        frames = jnp.where(jnp.pad(before, ((0, 0), (0, 1)))[..., None], 0, frames)
        return frames.reshape(-1, self.stack, *self.frame_shape)


@jax.custom_batching.custom_vmap
def _write(column: Array, slot: Array, row: Array) -> Array:
    """The column with another row."""
    return lax.dynamic_update_index_in_dim(column, row.astype(column.dtype), slot, 0)


@_write.def_vmap
def _write_for_each(
    size: int, batched: list[bool], column: Array, slot: Array, row: Array
) -> tuple[Array, bool]:
    """Writes the rows of all seeds at once; JAX's own rule for vmap would make a scatter of it."""
    if batched == [True, False, True]:
        return lax.dynamic_update_index_in_dim(column, row.astype(column.dtype), slot, 1), True
    axes = [0 if is_batched else None for is_batched in batched]
    plain = jax.vmap(
        lambda column, slot, row: lax.dynamic_update_index_in_dim(column, row.astype(column.dtype), slot, 0),
        in_axes=axes,
        axis_size=size,
    )
    return plain(column, slot, row), True


def _find(values: Float[Array, "k"], shares: Float[Array, "b"]) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
    """Finds the value in which each share of the sum lies.

    Returns:
      The index of the first value whose cumulative sum exceeds share * sum, and the share of that value below it.
    """
    # Rounding may give the sum at a value of 0 another last bit than its neighbour's, and it must never be found.
    sums = lax.cummax(jnp.where(values > 0, jnp.cumsum(values), 0.0))
    wanted = shares * sums[-1]
    index = jnp.searchsorted(sums, wanted, side="right", method="compare_all")
    # Rounding may ask for more than the whole; the last value above 0 is then meant.
    last = jnp.max(jnp.where(values > 0, jnp.arange(len(values)), 0))
    index = jnp.minimum(index, last).astype(jnp.int32)
    rest = (wanted - (sums[index] - values[index])) / jnp.where(values[index] > 0, values[index], 1.0)
    return index, jnp.clip(rest, 0.0, 1.0)
