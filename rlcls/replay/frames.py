"""A replay ring of single frames: 7,056 bytes for each Atari transition instead of 56,448."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped

from rlcls.envs.base import HostEnv
from rlcls.transition import Transition

from .priorities import Priorities


class Sampled(NamedTuple):
    """The origin of a batch's transitions, by which their priorities are set.

    Attributes:
      streams: int64 [B].
      rows: int64 [B], row numbers since the beginning of the run (not places in the ring).
    """

    streams: Int[np.ndarray, "b"]
    rows: Int[np.ndarray, "b"]


class FrameReplay:
    """The latest `capacity` agent steps of several environments, sampled as n-step transitions.

    One *row* holds what one vector step produced: for each of the `num_streams` environments the newest frame of the
    observation that was acted on, the action, the reward, whether the episode terminated there, and whether that
    observation began an episode. Observations are stacked when sampled, with zeros before an episode's first frame,
    as the emulator stacks them.

    A row that is followed by an episode's start holds the final observation of the episode before, whose action was
    ignored (gymnasium's next-step autoreset). Transitions bootstrap from it and never start at it. A lost life that
    ends an episode for the agent is a terminal without such a row, since the game plays on.

    It is a `rlcls.training.loop.Source`: a batch is a function of (seed, update, contents). It is also
    `rlcls.training.loop.Rows`: a checkpoint saves its rows incrementally.

    Memory: capacity * (frame bytes + 19), so 7 KB for each 84x84 transition.

    Args:
      num_streams: environments, N.
      capacity: agent steps kept, all streams together.
      frame_shape: shape of one stored frame.
      frame_dtype: dtype of the frames, uint8 for images.
      stack: frames in an observation ([stack, *frame_shape]); 0 where the frame is the observation.
      min_size: agent steps that are added before the first update.
      n_step: rewards summed before bootstrapping.
      gamma: discount of one agent step.
      reward_clip: rewards are clipped to +-reward_clip when summed, and stored unclipped; 0 clips none.
      prioritized: sample in proportion to priority**priority_exponent (Schaul et al. 2016); otherwise uniformly.
      priority_exponent: alpha of that paper.
      importance_exponent: beta of that paper, constant.

    Attributes:
      prioritized: whether sampling depends on priorities.
      raw_weights: whether importance weights are powers of a transition's share of all priorities here, so that
        batches of several replays can be put together; otherwise they are divided by the largest of the batch.

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
        for name in ("reward_clip", "priority_exponent", "importance_exponent"):
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
        self._reward_clip, self.prioritized = reward_clip, prioritized
        self._priority_exponent, self._importance_exponent = priority_exponent, importance_exponent
        self.delay, self.raw_weights = 0, False
        shape = (num_streams, self.length)
        self.frames = np.zeros((*shape, *frame_shape), frame_dtype)
        self.actions = np.zeros(shape, np.int32)
        self.rewards = np.zeros(shape, np.float32)
        self.terminals = np.zeros(shape, bool)
        self.starts = np.zeros(shape, bool)
        self.drawn = np.zeros(shape, bool)  # whether `sample` ever drew a transition that starts there
        self.priorities = Priorities(num_streams * self.length)
        self.max_priority = 1.0
        self.rows = 0  # added since the beginning

    @classmethod
    def of(cls, env: HostEnv, capacity: int, **options: Any) -> FrameReplay:
        """An empty replay for what `env` shows; `options` are the constructor's.

        Raises:
          ValueError: observations are trees, or actions continuous.
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
        """An empty replay with the same options but for `changes`."""
        replay = FrameReplay(self.num_streams, **(self._options | changes))
        replay.delay, replay.raw_weights = self.delay, self.raw_weights
        return replay

    @property
    def delay(self) -> int:
        """Rows by which the newest sampled row lags behind the newest row."""
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
        """Rows with which there is always a transition to sample.

        Only an episode's final observation cannot start a transition, and a first observation follows it. Two
        consecutive candidate rows therefore contain one that can.
        """
        return self._context + self.n_step + self._delay + 2

    @property
    def size(self) -> int:
        """Agent steps held."""
        return min(self.rows, self.length) * self.num_streams

    def add(
        self,
        observations: Shaped[np.ndarray, "n *observation"],
        actions: Int[np.ndarray, "n"],
        rewards: Float[np.ndarray, "n"],
        terminals: Bool[np.ndarray, "n"],
        starts: Bool[np.ndarray, "n"],
    ) -> None:
        """Appends one row; once the ring is full, it replaces the oldest.

        Args:
          observations: what was acted on; of stacked frames the newest is kept.
          actions: taken at these observations.
          rewards: received for the actions, not clipped.
          terminals: whether the action ended the episode; false where a limit cut it.
          starts: whether the observation was the first of its episode.
        """
        row, slot = self.rows, self.rows % self.length
        self.frames[:, slot] = observations[:, -1] if self._stack else observations
        self.actions[:, slot] = actions
        self.rewards[:, slot] = rewards
        self.terminals[:, slot] = terminals
        # Nothing before the first row may be stacked with it.
        self.starts[:, slot] = starts if row else True
        self.drawn[:, slot] = False
        self.rows += 1
        # Rows whose older frames are overwritten can no longer be stacked.
        stale = row - self.length + self._context
        if stale >= 0:
            self._weigh(stale, 0.0)
        fresh = row - self.n_step - self._delay
        if fresh >= 0:
            self._weigh(fresh, np.where(self.starts[:, (fresh + 1) % self.length], 0.0, self.max_priority))

    def _weigh(self, row: int, weights: Any) -> None:
        self.priorities.assign(np.arange(self.num_streams) * self.length + row % self.length, weights)

    def sample(self, batch_size: int, seed: int, update: int) -> tuple[Transition, Sampled]:
        """A batch drawn from (seed, update, contents) alone.

        Args:
          batch_size: B.
          seed: the run's seed.
          update: number of the update that this batch is for.

        Returns:
          The transitions, in arrays of their own, and where they came from.

        Raises:
          ValueError: if nothing can be sampled yet.
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
        return self._transitions(streams, rows, self._importance(chosen)), Sampled(streams, rows)

    def sample_held_out(self, batch_size: int, seed: int, update: int) -> Transition:
        """Transitions that `sample` has never drawn, all equally likely; it changes nothing.

        Args:
          batch_size: B; they may repeat.
          seed: the run's seed.
          update: number of the update that follows.

        Returns:
          The transitions, with weights 1. If `sample` has drawn all of them, any transitions, with weights 0.

        Raises:
          ValueError: if there is no transition yet.
        """
        can_be_drawn = self.priorities.weights > 0
        fresh = np.flatnonzero(can_be_drawn & ~self.drawn.reshape(-1))
        among = fresh if len(fresh) else np.flatnonzero(can_be_drawn)
        # The high word of the counter keeps these numbers apart from those of `sample`.
        random = np.random.Generator(np.random.Philox(key=[seed, update], counter=[0, 0, 0, 1]))
        streams, slots = np.divmod(random.choice(among, batch_size), self.length)
        newest = self.rows - 1
        rows = newest - (newest - slots) % self.length
        return self._transitions(streams, rows, np.full(batch_size, float(len(fresh) > 0), np.float32))

    def _transitions(self, streams: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> Transition:
        reward, discount, steps = self._accumulate(streams, rows)
        return Transition(
            observation=self._observations(streams, rows),
            action=self.actions[streams, rows % self.length],
            reward=reward,
            discount=discount,
            next_observation=self._observations(streams, rows + steps),
            weight=weight,
        )

    def _accumulate(self, streams: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sum of rewards, discount, and how many rows ahead to bootstrap."""
        reward = np.zeros(len(rows))
        discount = np.ones(len(rows))
        steps = np.zeros(len(rows), np.int64)
        running = np.ones(len(rows), bool)
        for i in range(self.n_step):
            at = (rows + i) % self.length
            step_reward = self.rewards[streams, at]
            if self._reward_clip:
                step_reward = np.clip(step_reward, -self._reward_clip, self._reward_clip)
            reward += np.where(running, self._gamma**i * step_reward, 0.0)
            steps += running
            terminal = running & self.terminals[streams, at]
            discount = np.where(running, np.where(terminal, 0.0, discount * self._gamma), discount)
            running &= ~terminal
            if i + 1 < self.n_step:
                running &= ~self.starts[streams, (rows + i + 2) % self.length]
        return reward.astype(np.float32), discount.astype(np.float32), steps

    def episode_returns(self, most_rows: int = 1000) -> Float64[np.ndarray, "episodes steps"]:
        """Discounted returns to go of the newest rows, as `rlcls.heads.suggest_support` takes them.

        Args:
          most_rows: rows that are looked at.

        Returns:
          float64, one episode in a row, zeros after its end; rewards are clipped as in `sample`. An episode that has
          not ended counts as far as it was played.
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
        # A frame is of another episode if any row after it, up to the sampled one, began one.
        begins = self.starts[streams[:, None], slots[:, 1:]]
        before = np.flip(np.logical_or.accumulate(np.flip(begins, 1), axis=1), 1)
        observations[:, :-1][before] = 0
        return observations

    def _importance(self, chosen: np.ndarray) -> np.ndarray:
        if not self.prioritized:
            return np.ones(len(chosen), np.float32)
        # A share of the total, because each of several processes draws from its own replay.
        shares = self.priorities.weights[chosen] / (self.priorities.total if self.raw_weights else 1.0)
        weights = shares**-self._importance_exponent
        return (weights / (1.0 if self.raw_weights else weights.max())).astype(np.float32)

    def set_priorities(self, sampled: tuple[np.ndarray, ...], divergences: Float[np.ndarray, "b"]) -> None:
        """Sets the priorities of a batch; rows that have left the ring are skipped.

        Args:
          sampled: streams and rows, as `sample` returned them.
          divergences: float [B] >= 0, the heads' `td_divergence`. A cross-entropy would be a bad priority, since its
            minimum depends on where in a bin the target lies.
        """
        streams, rows = sampled
        if not self.prioritized:
            return
        # The constant keeps every row alive: the float32 divergence of a learnt row can round to 0 or just below.
        priorities = (np.maximum(divergences, 0.0).astype(np.float64) + 1e-10) ** self._priority_exponent
        slots = streams * self.length + rows % self.length
        kept = (rows >= self.rows - self.length + self._context) & (self.priorities.weights[slots] > 0)
        self.priorities.assign(slots[kept], priorities[kept])
        self.max_priority = max(self.max_priority, float(priorities.max(initial=0.0)))

    @property
    def first(self) -> int:
        """Number of the oldest row held."""
        return max(0, self.rows - self.length)

    @property
    def last(self) -> int:
        """One more than the number of the newest row held."""
        return self.rows

    @property
    def row_bytes(self) -> int:
        """Memory of one row."""
        return sum(getattr(self, name)[:, 0].nbytes for name in self._columns)

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Copies of the rows first, ..., last - 1, as arrays [rows, num_streams, ...]."""
        slots = np.arange(first, last) % self.length
        return {name: np.moveaxis(getattr(self, name)[:, slots], 0, 1) for name in self._columns}

    def write(self, first: int, columns: dict[str, np.ndarray]) -> None:
        """Puts back rows that `read` returned; `first` is the number of the first of them."""
        last = first + len(columns["actions"])
        late = max(0, last - self.length - first)  # rows that the ring would overwrite at once
        slots = np.arange(first + late, last) % self.length
        for name in self._columns:
            getattr(self, name)[:, slots] = np.moveaxis(columns[name][late:], 1, 0)
        self.rows = last

    _columns = ("frames", "actions", "rewards", "terminals", "starts")

    def save(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The state that sampling depends on besides the rows: arrays and JSON-able counters."""
        arrays = {"replay/priorities": self.priorities.weights, "replay/drawn": self.drawn}
        return arrays, {"rows": self.rows, "max_priority": self.max_priority}

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        """Goes on from what `save` returned, once the rows have been written."""
        self.priorities.assign_all(arrays["replay/priorities"])
        self.drawn[:] = arrays["replay/drawn"]
        self.rows, self.max_priority = counters["rows"], counters["max_priority"]
