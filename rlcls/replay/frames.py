"""A replay ring of single frames: 7,056 bytes for each Atari transition instead of 56,448."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from .priorities import Priorities
from .transition import Transition


class Sampled(NamedTuple):
    """Where a batch came from, so that its priorities find their way back.

    Attributes:
      streams: int64 [B].
      rows: int64 [B], row numbers since the beginning of the run (not places in the ring).
    """

    streams: Int[np.ndarray, "b"]
    rows: Int[np.ndarray, "b"]


class FrameReplay:
    """The latest `capacity` agent steps of several environments, sampled as n-step transitions.

    One *row* holds what one vector step produced: for each of the `num_streams` environments the newest frame of
    the observation that was acted on, the action, the reward and whether the episode terminated there, and whether
    that observation began an episode. Observations are stacked again when sampled, with zeros before an episode's
    first frame, as the emulator stacks them.

    A row followed by an episode's start is the last look at the episode before: its action was ignored (gymnasium's
    next-step autoreset) or its outcome dropped (a re-seed). It is bootstrapped from, never started from. A lost life
    that ends an episode for the agent is a terminal without such a row, since the game plays on.

    Sampling is a pure function of (seed, update, contents).

    Memory: capacity * (frame bytes + 19), so 7 KB for each 84x84 transition.

    Args:
      num_streams: environments, N.
      capacity: agent steps kept, all streams together.
      frame_shape: of one stored frame.
      frame_dtype: of the frames, uint8 for images.
      stack: frames in an observation ([stack, *frame_shape]); 0 where the frame is the observation.
      n_step: rewards summed before bootstrapping.
      gamma: discount of one agent step.
      reward_clip: rewards are clipped to +-reward_clip when summed; 0 leaves them alone. Raw ones are stored.
      prioritized: sample in proportion to priority**priority_exponent (Schaul et al. 2016); otherwise uniformly.
      priority_exponent: alpha of the same paper.
      importance_exponent: beta of the same paper, constant.
      delay: rows by which the newest sampled row lags behind the newest row.
    """

    def __init__(
        self,
        num_streams: int,
        capacity: int,
        *,
        frame_shape: tuple[int, ...],
        frame_dtype: Any = np.uint8,
        stack: int = 4,
        n_step: int = 1,
        gamma: float = 0.99,
        reward_clip: float = 0.0,
        prioritized: bool = False,
        priority_exponent: float = 0.5,
        importance_exponent: float = 0.5,
        delay: int = 0,
    ):
        self.num_streams = num_streams
        self.length = capacity // num_streams
        self._context = max(stack - 1, 0)
        # Three rows to begin a transition in, of which two in a row may not: the last look at an episode, and a first
        # one cut off by a reset.
        least = self._context + n_step + delay + 3
        if self.length < least:
            raise ValueError(
                f"replay.capacity ({capacity}) must hold at least {least} steps of each of {num_streams} environments"
            )
        self._stack, self._n_step, self._gamma, self._delay = stack, n_step, gamma, delay
        self._reward_clip, self._prioritized = reward_clip, prioritized
        self._priority_exponent, self._importance_exponent = priority_exponent, importance_exponent
        shape = (num_streams, self.length)
        self.frames = np.zeros((*shape, *frame_shape), frame_dtype)
        self.actions = np.zeros(shape, np.int32)
        self.rewards = np.zeros(shape, np.float32)
        self.terminals = np.zeros(shape, bool)
        self.starts = np.zeros(shape, bool)
        self.drawn = np.zeros(shape, bool)  # by `sample`, ever
        self.priorities = Priorities(num_streams * self.length)
        self.max_priority = 1.0
        self.rows = 0  # ever added

    @property
    def size(self) -> int:
        """Agent steps held."""
        return min(self.rows, self.length) * self.num_streams

    def add(
        self,
        frames: Shaped[np.ndarray, "n *frame"],
        actions: Int[np.ndarray, "n"],
        rewards: Float[np.ndarray, "n"],
        terminals: Bool[np.ndarray, "n"],
        starts: Bool[np.ndarray, "n"],
    ) -> None:
        """Appends one row; the oldest gives way once the ring is full.

        Args:
          frames: newest frame of each observation acted on.
          actions: what was done there.
          rewards: raw, received for it.
          terminals: whether it ended the episode (not: whether a limit cut it).
          starts: whether that observation was the first of its episode.
        """
        row, slot = self.rows, self.rows % self.length
        self.frames[:, slot] = frames
        self.actions[:, slot] = actions
        self.rewards[:, slot] = rewards
        self.terminals[:, slot] = terminals
        # What lies before the first row is not known to be the same episode, so it must not be stacked.
        self.starts[:, slot] = starts if row else True
        self.drawn[:, slot] = False
        self.rows += 1
        # Rows whose older frames are overwritten can no longer be stacked.
        stale = row - self.length + self._context
        if stale >= 0:
            self._weigh(stale, 0.0)
        fresh = row - self._n_step - self._delay
        if fresh >= 0:
            self._weigh(fresh, np.where(self.starts[:, (fresh + 1) % self.length], 0.0, self.max_priority))

    def _weigh(self, row: int, weights: Any) -> None:
        self.priorities.assign(np.arange(self.num_streams) * self.length + row % self.length, weights)

    def sample(self, batch_size: int, seed: int, update: int) -> tuple[Transition, Sampled]:
        """A batch drawn from (seed, update, contents) alone.

        Args:
          batch_size: B.
          seed: of the run.
          update: number of the update this batch is for.

        Returns:
          The transitions, fresh numpy arrays, and where they came from.

        Raises:
          ValueError: if nothing can be sampled yet.
        """
        random = np.random.Generator(np.random.Philox(key=[seed, update]))
        uniforms = random.random(batch_size)
        if self._prioritized:  # stratified, as in the paper's appendix B.2.1
            uniforms = (uniforms + np.arange(batch_size)) / batch_size
        chosen = self.priorities.draw(uniforms)
        streams, slots = np.divmod(chosen, self.length)
        self.drawn[streams, slots] = True
        newest = self.rows - 1
        rows = newest - (newest - slots) % self.length
        return self._transitions(streams, rows, self._importance(chosen)), Sampled(streams, rows)

    def sample_held_out(self, batch_size: int, seed: int, update: int) -> Transition:
        """Transitions that `sample` has never drawn, each as likely as the other; it changes nothing.

        Args:
          batch_size: B; they may repeat.
          seed: of the run.
          update: number of the update before which they are wanted.

        Returns:
          The transitions, with weights 1. Where `sample` has drawn all there are, any of them, with weights 0.

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
        for i in range(self._n_step):
            at = (rows + i) % self.length
            step_reward = self.rewards[streams, at]
            if self._reward_clip:
                step_reward = np.clip(step_reward, -self._reward_clip, self._reward_clip)
            reward += np.where(running, self._gamma**i * step_reward, 0.0)
            steps += running
            terminal = running & self.terminals[streams, at]
            discount = np.where(running, np.where(terminal, 0.0, discount * self._gamma), discount)
            running &= ~terminal
            if i + 1 < self._n_step:
                running &= ~self.starts[streams, (rows + i + 2) % self.length]
        return reward.astype(np.float32), discount.astype(np.float32), steps

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
        if not self._prioritized:
            return np.ones(len(chosen), np.float32)
        weights = self.priorities.weights[chosen] ** -self._importance_exponent
        return (weights / weights.max()).astype(np.float32)

    def set_priorities(self, sampled: Sampled, divergences: Float[np.ndarray, "b"]) -> None:
        """Gives a batch its new priorities; rows that have left the ring meanwhile are passed over.

        Args:
          sampled: what `sample` returned.
          divergences: float [B] >= 0, the heads' `td_divergence`: a cross-entropy has a floor that depends on where
            in a bin the target fell, and would make a bad priority.
        """
        if not self._prioritized:
            return
        # A constant keeps every row alive; float32 divergences of a learnt row can round to zero or just below.
        priorities = (np.maximum(divergences, 0.0).astype(np.float64) + 1e-10) ** self._priority_exponent
        slots = sampled.streams * self.length + sampled.rows % self.length
        kept = (sampled.rows >= self.rows - self.length + self._context) & (
            self.priorities.weights[slots] > 0
        )
        self.priorities.assign(slots[kept], priorities[kept])
        self.max_priority = max(self.max_priority, float(priorities.max()))

    # What a checkpoint takes and gives back.

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Copies of rows first..last-1, as arrays [rows, num_streams, ...]."""
        slots = np.arange(first, last) % self.length
        return {name: np.moveaxis(getattr(self, name)[:, slots], 0, 1) for name in self._columns}

    def write(self, first: int, columns: dict[str, np.ndarray]) -> None:
        """Puts back rows that `read` gave, the first of them numbered `first`; priorities are restored apart."""
        slots = np.arange(first, first + len(columns["actions"])) % self.length
        for name in self._columns:
            getattr(self, name)[:, slots] = np.moveaxis(columns[name], 1, 0)

    _columns = ("frames", "actions", "rewards", "terminals", "starts")
