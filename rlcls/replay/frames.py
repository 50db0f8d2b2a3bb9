"""A replay buffer of single frames, which takes 7,056 bytes for an Atari transition instead of 56,448."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped, UInt64

from rlcls.envs.base import HostEnv
from rlcls.transition import Transition

from .priorities import Priorities


class Sampled(NamedTuple):
    """The origin of each transition in a batch, which `set_priorities` needs.

    Attributes:
      streams: int64 [B], the environment.
      rows: int64 [B], the row number since the beginning of the run (not the slot in the ring).
    """

    streams: Int[np.ndarray, "b"]
    rows: Int[np.ndarray, "b"]


class FrameReplay:
    """The latest `capacity` agent steps of several environments, sampled as n-step transitions.

    One *row* holds one vector step. For each of the `num_streams` environments it has the newest frame of the
    observation, the action, the reward, whether the episode terminated, and whether the observation was the first of
    its episode. Observations are stacked when sampled, with zeros before an episode's first frame, like the emulator's.

    The row before an episode's start holds the final observation of the previous episode, whose action was ignored
    (gymnasium's next-step autoreset). Transitions bootstrap from this row and never start at it. A lost life that ends
    an episode for the agent is a terminal without such a row, because the game continues.

    It is a `rlcls.training.loop.Source`: a batch is a function of (seed, update, contents). It is also
    `rlcls.training.loop.Rows`: a checkpoint saves its rows incrementally.

    Memory: capacity * (frame bytes + 19), which is 7 KB for each 84x84 transition.

    Args:
      num_streams: number of environments, N.
      capacity: number of stored agent steps, over all streams.
      frame_shape: shape of one stored frame.
      frame_dtype: dtype of the frames, uint8 for images.
      stack: frames in an observation ([stack, *frame_shape]); 0 if the frame is the observation.
      min_size: agent steps before the first update.
      n_step: number of rewards that are summed before bootstrapping.
      gamma: discount of one agent step.
      reward_clip: rewards are clipped to +-reward_clip when they are summed, and stored unclipped; 0 disables clipping.
      reward_noise: a number between 0 and this is added to each clipped reward. It is a function of the run's seed and
        of the step, so a transition has the same reward in every batch.
      prioritized: sample in proportion to priority**priority_exponent (Schaul et al. 2016) instead of uniformly.
      priority_exponent: alpha in that paper.
      importance_exponent: beta in that paper, constant.

    Attributes:
      prioritized: whether sampling depends on priorities.
      raw_weights: whether importance weights are powers of a transition's share of all priorities in this replay, so
        that batches of several replays can be joined. Otherwise weights are divided by the largest one in the batch.

    Raises:
      ValueError: an option is out of range, or the ring would not always hold a transition.
    """

    def __init__(
        self,
        num_streams: int,
        capacity: int,
        *,
        frame_shape: tuple[int, ...],
        frame_dtype: Any = np.uint8,
        stack: int = 4,
        min_size: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        reward_clip: float = 0.0,
        reward_noise: float = 0.0,
        prioritized: bool = False,
        priority_exponent: float = 0.5,
        importance_exponent: float = 0.5,
    ):
        self._options = {
            name: value for name, value in locals().items() if name not in ("self", "num_streams")
        }
        for name, value, least in (
            ("capacity", capacity, 1),
            ("min_size", min_size, 1),
            ("n_step", n_step, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        for name in ("reward_clip", "reward_noise", "priority_exponent", "importance_exponent"):
            if self._options[name] < 0:
                raise ValueError(f"{name} must be at least 0, not {self._options[name]}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be between 0 and 1, not {gamma}")
        if capacity < min_size:
            raise ValueError(f"capacity ({capacity}) must be at least min_size ({min_size})")
        self.num_streams, self.min_size, self.n_step = num_streams, min_size, n_step
        self.length = capacity // num_streams
        self._stack, self._gamma = stack, gamma
        self._context = max(stack - 1, 0)
        self._reward_clip, self._reward_noise, self.prioritized = reward_clip, reward_noise, prioritized
        self._priority_exponent, self._importance_exponent = priority_exponent, importance_exponent
        self.delay, self.raw_weights = 0, False
        shape = (num_streams, self.length)
        self.frames = np.zeros((*shape, *frame_shape), frame_dtype)
        self.actions = np.zeros(shape, np.int32)
        self.rewards = np.zeros(shape, np.float32)
        self.terminals = np.zeros(shape, bool)
        self.starts = np.zeros(shape, bool)
        self.drawn = np.zeros(shape, bool)  # whether `sample` has drawn a transition that starts here
        self.priorities = Priorities(num_streams * self.length)
        self.max_priority = 1.0
        self.rows = 0  # number of rows added since the beginning

    @classmethod
    def of(cls, env: HostEnv, capacity: int, **options: Any) -> FrameReplay:
        """An empty replay for the observations of `env`. `options` are those of the constructor.

        Raises:
          ValueError: observations are trees, or actions are continuous.
        """
        observation, stack = env.spec.observation, env.frame_stack
        if (
            not isinstance(observation, jax.ShapeDtypeStruct)
            or env.spec.num_actions is None
            or env.spec.action.shape
        ):
            raise ValueError("this replay stores observations of one array and discrete actions")
        shape = observation.shape[1:] if stack else observation.shape
        return cls(
            env.num_envs, capacity, frame_shape=shape, frame_dtype=observation.dtype, stack=stack, **options
        )

    def like(self, **changes: Any) -> FrameReplay:
        """An empty replay with the same options, except for `changes`."""
        replay = FrameReplay(self.num_streams, **(self._options | changes))
        replay.delay, replay.raw_weights = self.delay, self.raw_weights
        return replay

    @property
    def delay(self) -> int:
        """Rows by which sampled rows lag behind the newest row."""
        return self._delay

    @delay.setter
    def delay(self, rows: int) -> None:
        self._delay = rows
        if self.length < self.least_rows:
            raise ValueError(
                f"the replay's capacity ({self._options['capacity']}) must hold at least {self.least_rows} steps of "
                f"each of {self.num_streams} environments"
            )

    @property
    def least_rows(self) -> int:
        """The smallest number of rows that always contains a transition.

        Only an episode's final observation cannot start a transition, and a first observation follows it. Two
        consecutive candidate rows therefore contain one that can.
        """
        return self._context + self.n_step + self._delay + 2

    @property
    def size(self) -> int:
        """The number of stored agent steps."""
        return min(self.rows, self.length) * self.num_streams

    def add(
        self,
        observations: Shaped[np.ndarray, "n *observation"],
        actions: Int[np.ndarray, "n"],
        rewards: Float[np.ndarray, "n"],
        terminals: Bool[np.ndarray, "n"],
        starts: Bool[np.ndarray, "n"],
    ) -> None:
        """Appends one row, which replaces the oldest one if the ring is full.

        Args:
          observations: the observations; only the newest of stacked frames is stored.
          actions: the actions taken at these observations.
          rewards: the rewards of these actions, not clipped.
          terminals: whether the action terminated the episode; false if it was truncated.
          starts: whether the observation is the first of its episode.
        """
        row, slot = self.rows, self.rows % self.length
        self.frames[:, slot] = observations[:, -1] if self._stack else observations
        self.actions[:, slot] = actions
        self.rewards[:, slot] = rewards
        self.terminals[:, slot] = terminals
        # The first row counts as a start, because there are no earlier frames to stack.
        self.starts[:, slot] = starts if row else True
        self.drawn[:, slot] = False
        self.rows += 1
        # A row cannot be sampled after one of its older frames was overwritten.
        stale = row - self.length + self._context
        if stale >= 0:
            self._weigh(stale, 0.0)
        fresh = row - self.n_step - self._delay
        if fresh >= 0:
            self._weigh(fresh, np.where(self.starts[:, (fresh + 1) % self.length], 0.0, self.max_priority))

    def _weigh(self, row: int, weights: Any) -> None:
        self.priorities.assign(np.arange(self.num_streams) * self.length + row % self.length, weights)

    def sample(self, batch_size: int, seed: int, update: int) -> tuple[Transition, Sampled]:
        """A batch, as a function of (seed, update, contents).

        Args:
          batch_size: B.
          seed: the run's seed.
          update: number of the update that uses this batch.

        Returns:
          The transitions as new arrays, and their origins.

        Raises:
          ValueError: the replay has no transition yet.
        """
        random = np.random.Generator(np.random.Philox(key=[seed, update]))
        uniforms = random.random(batch_size)
        if self.prioritized:  # stratified, as in the paper's appendix B.2.1
            uniforms = (uniforms + np.arange(batch_size)) / batch_size
        chosen = self.priorities.draw(uniforms)
        streams, slots = np.divmod(chosen, self.length)
        self.drawn[streams, slots] = True
        newest = self.rows - 1
        rows = newest - (newest - slots) % self.length
        return self._transitions(streams, rows, self._importance(chosen), seed), Sampled(streams, rows)

    def sample_held_out(self, batch_size: int, seed: int, update: int) -> Transition:
        """Equally likely transitions that `sample` has never drawn. It does not change the replay.

        Args:
          batch_size: B; transitions may repeat.
          seed: the run's seed.
          update: number of the next update.

        Returns:
          The transitions, with weights 1. If `sample` has drawn all transitions, any transitions with weights 0.

        Raises:
          ValueError: the replay has no transition yet.
        """
        can_be_drawn = self.priorities.weights > 0
        fresh = np.flatnonzero(can_be_drawn & ~self.drawn.reshape(-1))
        among = fresh if len(fresh) else np.flatnonzero(can_be_drawn)
        # A different high word of the counter makes these numbers independent of those of `sample`.
        random = np.random.Generator(np.random.Philox(key=[seed, update], counter=[0, 0, 0, 1]))
        streams, slots = np.divmod(random.choice(among, batch_size), self.length)
        newest = self.rows - 1
        rows = newest - (newest - slots) % self.length
        return self._transitions(streams, rows, np.full(batch_size, float(len(fresh) > 0), np.float32), seed)

    def _transitions(
        self, streams: np.ndarray, rows: np.ndarray, weight: np.ndarray, seed: int = 0
    ) -> Transition:
        reward, discount, steps = self._accumulate(streams, rows, seed)
        return Transition(
            observation=self._observations(streams, rows),
            action=self.actions[streams, rows % self.length],
            reward=reward,
            discount=discount,
            next_observation=self._observations(streams, rows + steps),
            weight=weight,
        )

    def _accumulate(
        self, streams: np.ndarray, rows: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The sum of rewards, the discount, and the number of rows to the bootstrap observation."""
        reward = np.zeros(len(rows))
        discount = np.ones(len(rows))
        steps = np.zeros(len(rows), np.int64)
        running = np.ones(len(rows), bool)
        for i in range(self.n_step):
            at = (rows + i) % self.length
            step_reward = self.rewards[streams, at]
            if self._reward_clip:
                step_reward = np.clip(step_reward, -self._reward_clip, self._reward_clip)
            if self._reward_noise:
                steps_so_far = (rows + i) * self.num_streams + streams
                step_reward = step_reward + self._reward_noise * _uniforms(seed, steps_so_far)
            reward += np.where(running, self._gamma**i * step_reward, 0.0)
            steps += running
            terminal = running & self.terminals[streams, at]
            discount = np.where(running, np.where(terminal, 0.0, discount * self._gamma), discount)
            running &= ~terminal
            if i + 1 < self.n_step:
                running &= ~self.starts[streams, (rows + i + 2) % self.length]
        return reward.astype(np.float32), discount.astype(np.float32), steps

    def episode_returns(self, most_rows: int = 1000) -> Float64[np.ndarray, "episodes steps"]:
        """Discounted returns-to-go of the newest rows, for `rlcls.heads.suggest_support`.

        Args:
          most_rows: the largest number of rows to use.

        Returns:
          float64, one episode per row, with zeros after its end. Rewards are clipped as in `sample`. The returns of an
          unfinished episode contain the rewards so far.
        """
        rows = np.arange(max(self.first, self.rows - most_rows), self.rows)
        slots = rows % self.length
        rewards = self.rewards[:, slots].astype(np.float64)
        if self._reward_clip:
            rewards = np.clip(rewards, -self._reward_clip, self._reward_clip)
        ends = self.terminals[:, slots]
        ends[:, :-1] |= self.starts[:, slots[1:]]
        ends[:, -1:] = True
        returns = rewards
        for i in reversed(range(len(rows) - 1)):
            returns[:, i] += np.where(ends[:, i], 0.0, self._gamma * returns[:, i + 1])
        episodes = np.split(returns.reshape(-1), np.flatnonzero(ends.reshape(-1)) + 1)[:-1]
        padded = np.zeros((len(episodes), max(map(len, episodes), default=0)))
        for row, episode in zip(padded, episodes, strict=True):
            row[: len(episode)] = episode
        return padded

    def _observations(self, streams: np.ndarray, rows: np.ndarray) -> np.ndarray:
        first = streams * self.length
        flat = self.frames.reshape(self.num_streams * self.length, *self.frames.shape[2:])
        if not self._stack:
            return flat[first + rows % self.length]
        back = rows[:, None] + np.arange(-self._context, 1)  # oldest frame first
        slots = back % self.length
        observations = np.take(flat, first[:, None] + slots, axis=0)
        # A frame belongs to another episode if a later row, up to the sampled one, is a start.
        begins = self.starts[streams[:, None], slots[:, 1:]]
        before = np.flip(np.logical_or.accumulate(np.flip(begins, 1), axis=1), 1)
        observations[:, :-1][before] = 0
        return observations

    def _importance(self, chosen: np.ndarray) -> np.ndarray:
        if not self.prioritized:
            return np.ones(len(chosen), np.float32)
        # Raw weights use shares of the total, because each of several processes samples its own replay.
        shares = self.priorities.weights[chosen] / (self.priorities.total if self.raw_weights else 1.0)
        weights = shares**-self._importance_exponent
        return (weights / (1.0 if self.raw_weights else weights.max())).astype(np.float32)

    def set_priorities(self, sampled: tuple[np.ndarray, ...], divergences: Float[np.ndarray, "b"]) -> None:
        """Sets the priorities of a batch. Rows that have left the ring are skipped.

        Args:
          sampled: streams and rows, from `sample`.
          divergences: float [B] >= 0, the head's `td_divergence`. A cross-entropy is a bad priority, because its
            minimum depends on the position of the target within its bin.
        """
        streams, rows = sampled
        if not self.prioritized:
            return
        # A row of priority 0 would never be drawn again. Rounding can make a float32 divergence 0 or slightly negative.
        priorities = (np.maximum(divergences, 0.0).astype(np.float64) + 1e-10) ** self._priority_exponent
        slots = streams * self.length + rows % self.length
        kept = (rows >= self.rows - self.length + self._context) & (self.priorities.weights[slots] > 0)
        self.priorities.assign(slots[kept], priorities[kept])
        self.max_priority = max(self.max_priority, float(priorities.max(initial=0.0)))

    @property
    def first(self) -> int:
        """The number of the oldest stored row."""
        return max(0, self.rows - self.length)

    @property
    def last(self) -> int:
        """One more than the number of the newest stored row."""
        return self.rows

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(getattr(self, name)[:, 0].nbytes for name in self._columns)

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Copies of the rows first, ..., last - 1, as arrays [rows, num_streams, ...]."""
        slots = np.arange(first, last) % self.length
        return {name: np.moveaxis(getattr(self, name)[:, slots], 0, 1) for name in self._columns}

    def write(self, first: int, columns: dict[str, np.ndarray]) -> None:
        """Restores rows that `read` returned. `first` is the number of the first one."""
        last = first + len(columns["actions"])
        late = max(0, last - self.length - first)  # rows that later ones would overwrite
        slots = np.arange(first + late, last) % self.length
        for name in self._columns:
            getattr(self, name)[:, slots] = np.moveaxis(columns[name][late:], 1, 0)
        self.rows = last

    _columns = ("frames", "actions", "rewards", "terminals", "starts")

    def save(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The state of sampling besides the rows: arrays, and counters as JSON values."""
        arrays = {"replay/priorities": self.priorities.weights, "replay/drawn": self.drawn}
        return arrays, {"rows": self.rows, "max_priority": self.max_priority}

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        """Restores the results of `save`, after the rows have been written."""
        self.priorities.assign_all(arrays["replay/priorities"])
        self.drawn[:] = arrays["replay/drawn"]
        self.rows, self.max_priority = counters["rows"], counters["max_priority"]


def _uniforms(seed: int, numbers: Int[np.ndarray, "b"]) -> Float64[np.ndarray, "b"]:
    """For each number a uniform one between 0 and 1, by splitmix64 (Steele et al. 2014)."""
    mixed = _mix(np.array([seed], np.uint64)) + numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(mixed) >> np.uint64(11)) * 2.0**-53


def _mix(bits: UInt64[np.ndarray, "b"]) -> UInt64[np.ndarray, "b"]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
