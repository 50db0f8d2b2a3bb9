"""n-step transitions from a recording, which are computed when they are sampled."""

from __future__ import annotations

import copy

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped

from rlcls._errors import UserError
from rlcls.spec import Spec
from rlcls.transition import Transition

from .indices import Indices
from .recording import Recording
from .rows import CUT

_NOISE, _EPISODES = 2, 3  # high words of Philox counters; `Indices`, `permute` and `Mixture` use 0 and 1


class Transitions:
    """A `rlcls.training.Dataset` of a recording: its batches are a function of (seed, number, contents).

    Stacks have zeros before the first frame of an episode, like those of `rlcls.replay.FrameReplay`. If the beginning
    of an episode is missing, no transition starts at its first stack - 1 recorded rows, because their stacks are
    unknown. An episode without a terminal bootstraps from its last row, and `next_action` is the action recorded there.

    `return_to_go` is the sum of discounted rewards to the end of the recorded part of the episode. If the episode was
    cut, later rewards are missing.

    All sums use the rewards reward_scale * (clip(r, +-reward_clip) + u), where u is uniform between 0 and
    `reward_noise`. The u of a row is a function of `seed` and of the row's number in the recording. A transition
    therefore has the same reward in every batch, and a sum over n steps contains the u of each step.

    `held_out` is the probability with which an episode is not sampled. The choice depends on the seed and on the number
    of the episode in the recording. No transition contains steps or frames of two episodes.

    Memory besides the mapped frames: 24 bytes per row with discrete actions, 28 if the learnt rewards differ from those
    recorded.

    Args:
      recording: the recording.
      n_step: number of rewards that are summed before bootstrapping.
      gamma: discount of one agent step.
      reward_clip: rewards are clipped to +-reward_clip; 0 disables clipping.
      reward_noise: upper end of the noise (eta of Farebrother et al. 2024, section 5.2.1), in units of clipped rewards.
      reward_scale: factor of clipped, noisy rewards, above 0.
      held_out: the share of episodes that are not sampled, at least 0 and below 1.
      successes_only: whether to sample only episodes with a recorded return above 0, for filtered cloning.
      seed: the run's seed, below 2**64.
      sampling: "replacement" or "epochs"; see `Indices`.
      host: number of this host.
      hosts: number of hosts, which share each batch.

    Attributes:
      count: number of transitions that can be sampled.
      seed: determines the noise and the held-out episodes.

    Raises:
      ValueError: an option is out of range.
      UserError: the recording has no transition.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        reward_clip: float = 0.0,
        reward_noise: float = 0.0,
        reward_scale: float = 1.0,
        held_out: float = 0.0,
        successes_only: bool = False,
        seed: int = 0,
        sampling: str = "replacement",
        host: int = 0,
        hosts: int = 1,
    ):
        if n_step < 1:
            raise ValueError(f"n_step must be at least 1, not {n_step}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be between 0 and 1, not {gamma}")
        if reward_clip < 0:
            raise ValueError(f"reward_clip must be at least 0, not {reward_clip}")
        if not 0 <= reward_noise < np.inf:
            raise ValueError(f"reward_noise must be at least 0 and finite, not {reward_noise}")
        if not 0 < reward_scale < np.inf:
            raise ValueError(f"reward_scale must be above 0 and finite, not {reward_scale}")
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out must be at least 0 and below 1, not {held_out}")
        self.recording, self.sampling = recording, sampling
        layout = recording.manifest.layout
        self.stack, self.n_step, self.gamma = layout.stack, n_step, gamma
        columns = recording.columns
        self._actions, self._terminals = np.array(columns.actions), np.array(columns.terminals)
        self._begins = columns.begins
        self._clipped = np.array(columns.rewards)
        if reward_clip:
            np.clip(self._clipped, -reward_clip, reward_clip, out=self._clipped)
        self._noise, self._scale, self._held_out = reward_noise, reward_scale, held_out
        last = np.append(self._begins[1:], True)[: columns.num_rows]
        self._steps = self._terminals | ~last  # rows whose action has a recorded outcome
        self._ends = self._terminals | last
        self._starts = self._steps.copy()  # whether a transition starts at a row
        for row in np.flatnonzero(columns.starts == CUT):
            unknown = slice(row, row + max(self.stack - 1, 0))
            # The next episode may start among these rows.
            self._starts[unknown] &= np.cumsum(self._begins[unknown]) > 1
        if successes_only:
            self._starts &= self._successes()
        self._kind = "transition of an episode with a return above 0" if successes_only else "transition"
        self._host, self._hosts = host, hosts
        self._draw_noise_and_episodes(seed)

    def with_seed(self, seed: int) -> Transitions:
        """The same recording with the noise and the held-out episodes of another seed.

        The new object shares the arrays that do not depend on the seed.

        Raises:
          UserError: that seed holds every transition out.
        """
        if seed == self.seed or not (self._noise or self._held_out):
            return self
        other = copy.copy(self)
        other._draw_noise_and_episodes(seed)
        return other

    def _draw_noise_and_episodes(self, seed: int) -> None:
        self.seed, rewards = seed, self._clipped
        if self._noise:
            rewards = rewards + np.float32(self._noise) * _uniforms(_NOISE, len(rewards), seed)
        if self._scale != 1:
            rewards = rewards * np.float32(self._scale)
        self._rewards = rewards
        self._returns = _returns_to_go(rewards, self._ends, self.gamma)
        first = self._starts
        uniforms = _uniforms(_EPISODES, int(self._begins.sum()), seed)
        is_held_out = (uniforms < self._held_out)[np.cumsum(self._begins) - 1]
        self._first_rows = np.flatnonzero(first & ~is_held_out)
        self._held_out_rows = np.flatnonzero(first & is_held_out)
        self.count = len(self._first_rows)
        if not self.count:
            outside = f", {len(self._held_out_rows):,} of them held out" if len(self._held_out_rows) else ""
            rows = self.recording.columns.num_rows
            raise UserError(f"{self.recording.path} has no {self._kind} ({rows} rows{outside})")
        self._indices = Indices(self.count, self.sampling, host=self._host, hosts=self._hosts)

    @property
    def spec(self) -> Spec:
        """The spec of the recording."""
        return self.recording.manifest.layout.spec

    @property
    def identity(self) -> dict[str, str]:
        """The game's name, and the number of rows with 16 hexadecimal digits of a hash of the contents."""
        rows, name = self.recording.columns.num_rows, self.recording.manifest.layout.game
        return {name: f"{rows:,} rows ({self.recording.identity[:16]})"}

    @property
    def behaviour_returns(self) -> dict[str, float]:
        """The game's name and the mean return of its complete episodes, from raw rewards.

        It is empty if no episode is complete, or if the rewards were clipped before they were recorded.
        """
        layout, columns = self.recording.manifest.layout, self.recording.columns
        returns, is_whole = columns.episode_returns()
        if layout.rewards_clipped or not is_whole.any():
            return {}
        return {layout.game: float(returns[is_whole].mean())}

    @property
    def sparse_rewards(self) -> dict[str, float]:
        """The game's name and its only nonzero learnt reward; empty if there are several such values or none."""
        rewards = self._rewards[self._rewards != 0]
        is_one = len(rewards) and (rewards == rewards[0]).all()
        return {self.recording.manifest.layout.game: float(rewards[0])} if is_one else {}

    def _successes(self) -> Bool[np.ndarray, "rows"]:
        """The rows of episodes with a recorded return above 0."""
        returns, _ = self.recording.columns.episode_returns()
        return (returns > 0)[np.cumsum(self._begins) - 1]

    def sample(self, size: int, seed: int, number: int) -> tuple[Transition, tuple[np.ndarray]]:
        """A batch; see `rlcls.training.Source`. Its origin is int64 [size], the first row of each transition.

        Raises:
          UserError: frames of the batch are damaged.
        """
        rows = self.draw(size, seed, number)
        return self.at(rows), (rows,)

    def draw(self, size: int, seed: int, number: int) -> Int64[np.ndarray, "size"]:
        """The origins of the batch of `sample`."""
        return self._first_rows[self._indices.draw(size, seed, number)]

    def held_out(self, most: int) -> tuple[np.ndarray]:
        """The origins of at most `most` evenly spaced held-out transitions, for `at`."""
        rows = self._held_out_rows
        return (rows[_spread(len(rows), most)],)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that `rlcls.datasets.ArrayTransitions` samples from, by name.

        With T rows: frames [T, *frame]; actions [T, *action]; float32 rewards [T], as they are learnt; float32 returns
        [T], the returns to go; bool terminals [T]; bool begins [T], whether a row begins an episode; bool steps [T],
        whether the outcome of a row's action is known; int32 first_rows [count], where transitions start; int32 count.

        Raises:
          UserError: a frame is damaged or not finite.
        """
        frames = np.asarray(self.recording.columns.frames)
        self.recording.check(np.arange(len(frames)))
        if frames.dtype.kind == "f" and not np.isfinite(frames).all():
            row = int(np.argwhere(~np.isfinite(frames))[0, 0])
            raise UserError(f"{self.recording.path}: the observation is not finite at row {row}")
        return {
            "frames": frames,
            "actions": self._actions,
            "rewards": self._rewards,
            "returns": self._returns,
            "terminals": self._terminals,
            "begins": self._begins,
            "steps": self._steps,
            "first_rows": self._first_rows.astype(np.int32),
            "count": np.asarray(self.count, np.int32),
        }

    def at(self, rows: Int64[np.ndarray, "b"]) -> Transition:
        """The transitions that start at these rows."""
        reward, discount, steps = self._accumulate(rows)
        # A terminal row without a final observation has no next row; its discount is 0.
        ahead = np.minimum(rows + steps, len(self._begins) - 1)
        next_rows = np.where(self._begins[ahead] | (rows + steps > ahead), rows + steps - 1, ahead)
        # One call for both, because with batches of 32 the overhead of numpy's calls is as large as the copies.
        observations = self._observations(np.concatenate([rows, next_rows]))
        return Transition(
            observation=observations[: len(rows)],
            action=self._actions[rows],
            reward=reward,
            discount=discount,
            next_observation=observations[len(rows) :],
            weight=np.ones(len(rows), np.float32),
            next_action=self._actions[next_rows],
            return_to_go=self._returns[rows],
        )

    def _accumulate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The sum of rewards, the discount, and the number of rows to the bootstrap observation."""
        reward, discount = np.zeros(len(rows)), np.ones(len(rows))
        steps, running = np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
        for i in range(self.n_step):
            at = np.minimum(rows + i, len(self._steps) - 1)
            if i:
                running &= self._steps[at] & (rows + i == at)
            reward += np.where(running, self.gamma**i * self._rewards[at], 0.0)
            steps += running
            terminal = running & self._terminals[at]
            discount = np.where(running, np.where(terminal, 0.0, discount * self.gamma), discount)
            running &= ~terminal
        return reward.astype(np.float32), discount.astype(np.float32), steps

    def _observations(self, rows: np.ndarray) -> Shaped[np.ndarray, "b *observation"]:
        frames = np.asarray(self.recording.columns.frames)  # indexing is faster than with np.memmap
        if not self.stack:
            self.recording.check(rows)
            return frames.take(rows, axis=0)
        stacked = np.maximum(rows[:, None] + np.arange(1 - self.stack, 1), 0)  # oldest frame first
        self.recording.check(stacked)
        observations = frames.take(stacked, axis=0)
        begins = self._begins[stacked[:, 1:]]
        if begins.any():
            # A frame belongs to another episode if a later row, up to the sampled one, starts an episode.
            before = np.logical_or.accumulate(begins[:, ::-1], axis=1)[:, ::-1]
            observations[:, :-1][before] = 0
        return observations


def _spread(available: int, most: int) -> Int64[np.ndarray, "count"]:
    """At most `most` evenly spaced numbers from 0, ..., available - 1."""
    count = min(available, most)
    return np.arange(count, dtype=np.int64) * available // max(count, 1)


def _uniforms(use: int, count: int, seed: int) -> Float32[np.ndarray, "count"]:
    """Numbers between 0 and 1, which differ for each `use`. A larger `count` only appends numbers."""
    random = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, 0, use]))
    return random.random(count, np.float32)


def _returns_to_go(
    rewards: Float32[np.ndarray, "rows"], ends: Bool[np.ndarray, "rows"], gamma: float
) -> Float32[np.ndarray, "rows"]:
    """The discounted sum of the rewards from each row to the next end, inclusive.

    Sums over 2, 4, 8, ... rows are computed from two sums over half as many rows.
    """
    rows = np.arange(len(rewards))
    places = np.flatnonzero(ends)
    left = places[np.searchsorted(places, rows)] - rows
    returns, length = rewards.astype(np.float64), 1
    while length <= left.max(initial=0):
        longer = returns.copy()
        longer[:-length] += np.where(left[:-length] >= length, gamma**length * returns[length:], 0.0)
        returns, length = longer, 2 * length
    return returns.astype(np.float32)
