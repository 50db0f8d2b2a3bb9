"""n-step transitions from a recording, made when they are sampled."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped

from rlcls._errors import UserError
from rlcls.spec import Spec
from rlcls.transition import Transition

from .indices import Indices
from .recording import Recording
from .rows import BEGINS, CONTINUES, CUT

_NOISE, _EPISODES = 2, 3  # high words of counters; `Indices`, `permute` and `Mixture` have 0 and 1


class Transitions:
    """A `rlcls.training.Dataset` of a recording: its batches are a function of (seed, number, contents).

    Stacks have zeros before the first frame of an episode, as those of `rlcls.replay.FrameReplay`. No transition
    starts at the first stack - 1 rows of an episode whose beginning is missing, since their stacks are unknown. An
    episode without a terminal bootstraps from its last row. `next_action` there is the action recorded with that row.

    `return_to_go` sums discounted rewards to the end of the episode or of its record; it lacks what an episode that
    was cut would still have brought.

    Every sum is of learnt rewards: reward_scale * (clip(r, +-reward_clip) + u), where u is uniform between 0 and
    `reward_noise`. The u of a row is a function of `seed` and of the row's place in the recording: a transition
    has the same reward at each visit, and the sums over n steps contain the u of each step.

    With `held_out`, each episode is kept out of the samples with that probability, which depends on the seed and on the
    place of the episode in the recording. No transition contains steps or frames of two episodes.

    Memory beside the mapped frames: 23 bytes for each row of discrete actions.

    Args:
      recording: what is sampled.
      n_step: rewards summed before bootstrapping.
      gamma: discount of one agent step.
      reward_clip: rewards are clipped to +-reward_clip; 0 clips none.
      reward_noise: upper end of the noise (eta of Farebrother et al. 2024, section 5.2.1), in units of clipped rewards.
      reward_scale: learnt units of one unit of reward, above 0.
      held_out: the share of episodes that are not sampled, at least 0 and below 1.
      successes_only: samples only episodes with a recorded return above 0, for filtered cloning.
      seed: the run's seed, below 2**64.
      sampling: "replacement" or "epochs", see `Indices`.
      host: number of this host.
      hosts: number of hosts, among which each batch is divided.

    Attributes:
      count: transitions that can be sampled.

    Raises:
      ValueError: an option is out of range.
      UserError: the recording holds no transition.
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
        self._stack, self._n_step, self._gamma = layout.stack, n_step, gamma
        columns = recording.columns
        self._actions, self._terminals = np.array(columns.actions), np.array(columns.terminals)
        self._begins = np.array(columns.starts) != CONTINUES
        self._rewards = np.array(columns.rewards)
        if reward_clip:
            np.clip(self._rewards, -reward_clip, reward_clip, out=self._rewards)
        if reward_noise:
            self._rewards += np.float32(reward_noise) * _uniforms(_NOISE, len(self._rewards), seed)
        self._rewards *= np.float32(reward_scale)
        last = np.append(self._begins[1:], True)[: columns.num_rows]
        self._steps = self._terminals | ~last  # whether the outcome of a row's action is known
        self._returns = _returns_to_go(self._rewards, self._terminals | last, gamma)
        first = self._steps.copy()
        for row in np.flatnonzero(columns.starts == CUT):
            unknown = slice(row, row + max(self._stack - 1, 0))
            # Another episode may begin among these rows.
            first[unknown] &= np.cumsum(self._begins[unknown]) > 1
        if successes_only:
            first &= self._successes()
        uniforms = _uniforms(_EPISODES, int(self._begins.sum()), seed)
        is_held_out = (uniforms < held_out)[np.cumsum(self._begins) - 1]
        self._first_rows = np.flatnonzero(first & ~is_held_out)
        self._held_out_rows = np.flatnonzero(first & is_held_out)
        self.count = len(self._first_rows)
        if not self.count:
            kind = "transition of an episode with a return above 0" if successes_only else "transition"
            outside = f", {len(self._held_out_rows):,} of them held out" if len(self._held_out_rows) else ""
            raise UserError(f"{recording.path} holds no {kind} ({columns.num_rows} rows{outside})")
        self._indices = Indices(self.count, sampling, host=host, hosts=hosts)

    @property
    def spec(self) -> Spec:
        """What was recorded."""
        return self.recording.manifest.layout.spec

    @property
    def identity(self) -> dict[str, str]:
        """The recorded contents by the game's name: the number of rows, and 16 hexadecimal digits of their hash."""
        rows, name = self.recording.columns.num_rows, self.recording.manifest.layout.game
        return {name: f"{rows:,} rows ({self.recording.identity[:16]})"}

    @property
    def behaviour_returns(self) -> dict[str, float]:
        """The mean return of raw rewards of the episodes played to their end, by the game's name.

        Empty where none was, or where the rewards were clipped before they were recorded.
        """
        layout, columns = self.recording.manifest.layout, self.recording.columns
        begins = np.flatnonzero(self._begins)
        # The last row is the final observation or, in some forms, the terminal step itself; a terminal before these is
        # a lost life.
        ends = np.append(begins[1:], columns.num_rows) - 1
        ended = self._terminals[ends] | self._terminals[np.maximum(ends - 1, begins)]
        is_whole = (columns.starts[begins] == BEGINS) & ended
        if layout.rewards_clipped or not is_whole.any():
            return {}
        returns = np.add.reduceat(np.asarray(columns.rewards, np.float64), begins)
        return {layout.game: float(returns[is_whole].mean())}

    @property
    def sparse_rewards(self) -> dict[str, float]:
        """The one learnt reward besides 0 by the name of the game; empty where there are several or none."""
        rewards = self._rewards[self._rewards != 0]
        is_one = len(rewards) and (rewards == rewards[0]).all()
        return {self.recording.manifest.layout.game: float(rewards[0])} if is_one else {}

    def _successes(self) -> Bool[np.ndarray, "rows"]:
        """The rows of episodes with a recorded return above 0."""
        begins = np.flatnonzero(self._begins)
        returns = np.add.reduceat(np.asarray(self.recording.columns.rewards, np.float64), begins)
        return (returns > 0)[np.cumsum(self._begins) - 1]

    def sample(self, size: int, seed: int, number: int) -> tuple[Transition, tuple[np.ndarray]]:
        """A batch, see `rlcls.training.Source`; its origin is int64 [size], the row where each transition starts.

        Raises:
          UserError: frames that it needs are damaged.
        """
        rows = self.draw(size, seed, number)
        return self.at(rows), (rows,)

    def draw(self, size: int, seed: int, number: int) -> Int64[np.ndarray, "size"]:
        """The origins of that batch."""
        return self._first_rows[self._indices.draw(size, seed, number)]

    def held_out(self, most: int) -> tuple[np.ndarray]:
        """The origins of at most so many held-out transitions, spread evenly; `at` takes them."""
        rows = self._held_out_rows
        return (rows[_spread(len(rows), most)],)

    def at(self, rows: Int64[np.ndarray, "b"]) -> Transition:
        """The transitions that start at these rows."""
        reward, discount, steps = self._accumulate(rows)
        # After a terminal row without a final observation there is none to bootstrap from, and the discount is 0.
        ahead = np.minimum(rows + steps, len(self._begins) - 1)
        next_rows = np.where(self._begins[ahead] | (rows + steps > ahead), rows + steps - 1, ahead)
        # One call for both: at batches of 32, calls of numpy take as long as the copies.
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
        """Sum of rewards, discount, and how many rows ahead to bootstrap."""
        reward, discount = np.zeros(len(rows)), np.ones(len(rows))
        steps, running = np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
        for i in range(self._n_step):
            at = np.minimum(rows + i, len(self._steps) - 1)
            if i:
                running &= self._steps[at] & (rows + i == at)
            reward += np.where(running, self._gamma**i * self._rewards[at], 0.0)
            steps += running
            terminal = running & self._terminals[at]
            discount = np.where(running, np.where(terminal, 0.0, discount * self._gamma), discount)
            running &= ~terminal
        return reward.astype(np.float32), discount.astype(np.float32), steps

    def _observations(self, rows: np.ndarray) -> Shaped[np.ndarray, "b *observation"]:
        frames = np.asarray(
            self.recording.columns.frames
        )  # indexing a plain array is quicker than a memory map
        if not self._stack:
            self.recording.check(rows)
            return frames.take(rows, axis=0)
        stacked = np.maximum(rows[:, None] + np.arange(1 - self._stack, 1), 0)  # oldest frame first
        self.recording.check(stacked)
        observations = frames.take(stacked, axis=0)
        begins = self._begins[stacked[:, 1:]]
        if begins.any():
            # A frame is of another episode if any row after it, up to the sampled one, began one.
            before = np.logical_or.accumulate(begins[:, ::-1], axis=1)[:, ::-1]
            observations[:, :-1][before] = 0
        return observations


def _spread(available: int, most: int) -> Int64[np.ndarray, "count"]:
    """At most so many of 0, ..., available - 1, evenly spaced."""
    count = min(available, most)
    return np.arange(count, dtype=np.int64) * available // max(count, 1)


def _uniforms(use: int, count: int, seed: int) -> Float32[np.ndarray, "count"]:
    """Numbers between 0 and 1 for one use; the first of them do not depend on `count`."""
    random = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, 0, use]))
    return random.random(count, np.float32)


def _returns_to_go(
    rewards: Float32[np.ndarray, "rows"], ends: Bool[np.ndarray, "rows"], gamma: float
) -> Float32[np.ndarray, "rows"]:
    """The discounted sum of the rewards from each row to the next end, both included.

    The sums over 1, 2, 4, ... rows are each made of two of the length before.
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
