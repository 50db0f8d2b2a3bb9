"""The replay against a slow and simple reference that keeps whole episodes in lists."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls.replay import FrameReplay

GAMMA = 0.9


@dataclasses.dataclass
class Look:
    """One row of one stream: the frame and the outcome of the action."""

    row: int
    frame: int
    action: int
    reward: float
    terminal: bool


class Oracle:
    """A reference replay that stores each stream as a list of episodes."""

    def __init__(self, num_streams, length, stack, n_step, reward_clip, delay):
        self.episodes = [[] for _ in range(num_streams)]
        self.length, self.stack, self.n_step, self.clip, self.delay = (
            length,
            stack,
            n_step,
            reward_clip,
            delay,
        )
        self.rows = 0

    def add(self, frames, actions, rewards, terminals, starts):
        for e, episodes in enumerate(self.episodes):
            if starts[e] or not episodes:
                episodes.append([])
            episodes[-1].append(Look(self.rows, frames[e], actions[e], rewards[e], terminals[e]))
        self.rows += 1

    def transitions(self):
        """(stream, row) -> (stacked frames, action, reward, discount, next stacked frames)."""
        found = {}
        for e, episodes in enumerate(self.episodes):
            for number, episode in enumerate(episodes):
                ended = number + 1 < len(episodes)
                for i, look in enumerate(episode):
                    if i == len(episode) - 1 and ended:
                        continue  # its action was not played in this episode
                    if look.row + self.n_step + self.delay > self.rows - 1:
                        continue
                    # The replay drops rows slightly before they, or their older frames, are overwritten.
                    if look.row < self.rows - self.length + max(self.stack - 1, 0):
                        continue
                    reward, discount, j = 0.0, 1.0, i
                    while True:
                        r = episode[j].reward
                        reward += discount * (np.clip(r, -self.clip, self.clip) if self.clip else r)
                        terminal = episode[j].terminal
                        discount *= 0.0 if terminal else GAMMA
                        j += 1
                        if terminal or j - i == self.n_step or j == len(episode) - 1:
                            break
                    after = self._stacked(episode, j) if j < len(episode) else None
                    found[e, look.row] = (self._stacked(episode, i), look.action, reward, discount, after)
        return found

    def _stacked(self, episode, i):
        if not self.stack:
            return [episode[i].frame]
        frames = [episode[k].frame if k >= 0 else 0 for k in range(i - self.stack + 1, i + 1)]
        return frames


def random_history(random, num_streams, rows, life_losses):
    """Rows of an environment with next-step autoreset, with terminals, truncations and lost lives."""
    frame = 1
    pending = np.zeros(num_streams, bool)
    starts = np.ones(num_streams, bool)
    for _ in range(rows):
        frames = np.arange(frame, frame + num_streams)
        frame += num_streams
        rewards = random.integers(-3, 4, num_streams).astype(np.float32)
        actions = random.integers(0, 5, num_streams)
        over = ~pending & (random.random(num_streams) < 0.15)
        cut = ~pending & ~over & (random.random(num_streams) < 0.1)
        lost = ~pending & ~over & ~cut & life_losses & (random.random(num_streams) < 0.2)
        yield frames, actions, np.where(pending, 0, rewards), over | lost, starts
        starts, pending = pending, over | cut


SETTINGS = st.fixed_dictionaries(
    {
        "num_streams": st.integers(1, 3),
        "length": st.integers(14, 40),
        "rows": st.integers(1, 120),
        "stack": st.sampled_from([0, 1, 2, 4]),
        "n_step": st.integers(1, 4),
        "reward_clip": st.sampled_from([0.0, 1.0]),
        "delay": st.integers(0, 3),
        "life_losses": st.booleans(),
        "prioritized": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


def build(case):
    replay = FrameReplay(
        case["num_streams"],
        case["length"] * case["num_streams"] + case["num_streams"] - 1,
        frame_shape=(1,),
        frame_dtype=np.int64,
        stack=case["stack"],
        n_step=case["n_step"],
        gamma=GAMMA,
        reward_clip=case["reward_clip"],
        prioritized=case["prioritized"],
    )
    replay.delay = case["delay"]
    oracle = Oracle(*(case[k] for k in ("num_streams", "length", "stack", "n_step", "reward_clip", "delay")))
    return replay, oracle


def observations(case, frames):
    """Observations whose frames are one number each, stacked if the case has stacks."""
    stack = case["stack"]
    return np.repeat(frames[:, None, None], stack, axis=1) if stack else frames[:, None]


def fill(case, replay, oracle):
    random = np.random.default_rng(case["seed"])
    for frames, *rest in random_history(random, case["num_streams"], case["rows"], case["life_losses"]):
        replay.add(observations(case, frames), *rest)
        oracle.add(frames, *rest)


@settings(deadline=None, max_examples=150)
@given(SETTINGS)
def test_transitions_equal_those_of_whole_episodes(case):
    replay, oracle = build(case)
    fill(case, replay, oracle)
    expected = oracle.transitions()
    allowed = {
        (
            int(s // replay.length),
            int(replay.rows - 1 - (replay.rows - 1 - s % replay.length) % replay.length),
        )
        for s in np.flatnonzero(replay.priorities.weights)
    }
    assert allowed == set(expected)
    if not expected:
        with pytest.raises(ValueError, match="nothing can be drawn"):
            replay.sample(2, 0, 0)
        return
    batch, sampled = replay.sample(64, case["seed"], 3)
    for b, key in enumerate(zip(sampled.streams.tolist(), sampled.rows.tolist(), strict=True)):
        observation, action, reward, discount, after = expected[key]
        assert batch.observation[b].reshape(-1).tolist() == observation
        assert batch.action[b] == action
        assert batch.reward[b] == pytest.approx(reward, abs=1e-5)
        assert batch.discount[b] == pytest.approx(discount, abs=1e-6)
        if discount > 0:
            assert batch.next_observation[b].reshape(-1).tolist() == after
    shape = (64, case["stack"], 1) if case["stack"] else (64, 1)
    assert batch.observation.shape == batch.next_observation.shape == shape


@settings(deadline=None, max_examples=40)
@given(SETTINGS)
def test_a_replay_restored_from_its_rows_samples_the_same(case):
    replay, oracle = build(case)
    fill(case, replay, oracle)
    copy, _ = build(case)
    first = max(0, replay.rows - replay.length)
    middle = (first + replay.rows) // 2
    for a, b in ((first, middle), (middle, replay.rows)):
        copy.write(a, replay.read(a, b))
    copy.restore(*replay.save())
    if replay.priorities.total == 0:
        return
    for mine, theirs in zip(replay.sample_held_out(16, 5, 9), copy.sample_held_out(16, 5, 9), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(replay.sample(16, 5, 9)[0], copy.sample(16, 5, 9)[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    random = np.random.default_rng(1)
    for frames, *rest in random_history(random, case["num_streams"], 5, False):
        replay.add(observations(case, frames), *rest)
        copy.add(observations(case, frames), *rest)
    np.testing.assert_array_equal(replay.priorities.weights, copy.priorities.weights)


@settings(deadline=None, max_examples=100)
@given(SETTINGS)
def test_the_smallest_replay_has_a_transition_of_every_stream_when_full(case):
    replay, _ = build(case)
    replay = replay.like(capacity=replay.least_rows * case["num_streams"])
    random = np.random.default_rng(case["seed"])
    for frames, *rest in random_history(random, case["num_streams"], case["rows"], case["life_losses"]):
        replay.add(observations(case, frames), *rest)
        if replay.rows >= replay.length:
            assert (replay.priorities.weights.reshape(case["num_streams"], -1) > 0).any(axis=1).all()


def test_a_replay_one_row_shorter_can_have_no_transition(monkeypatch):
    """In episodes of one step, every second row is a final observation."""
    least = FrameReplay(1, 10, frame_shape=(1,), stack=0).least_rows
    monkeypatch.setattr(FrameReplay, "least_rows", least - 1)
    replay = FrameReplay(1, least - 1, frame_shape=(1,), stack=0)
    could_be_sampled = []
    for row in range(8):
        begins = np.array([row % 2 == 0])
        replay.add(np.zeros((1, 1), np.uint8), np.zeros(1, np.int32), np.zeros(1), begins, begins)
        could_be_sampled.append(bool(replay.priorities.weights.any()))
    assert could_be_sampled == [False, True] * 4


def make(**changes):
    options = dict(frame_shape=(2,), stack=0, prioritized=True) | changes
    return FrameReplay(2, 40, **options)


def add_rows(replay, count):
    for _ in range(count):
        n = replay.num_streams
        flags = np.zeros(n, bool)
        replay.add(np.full((n, 2), replay.rows), np.zeros(n, np.int32), np.zeros(n), flags, flags)


def test_transitions_are_drawn_in_proportion_to_priority_with_importance_weights():
    replay = make(priority_exponent=1.0, importance_exponent=1.0)
    add_rows(replay, 12)
    _, sampled = replay.sample(256, 0, 0)
    replay.set_priorities(sampled, np.where(sampled.rows == 4, 9.0, 1.0))
    batch, sampled = replay.sample(4000, 0, 1)
    high = sampled.rows == 4
    held = replay.priorities.weights.reshape(2, -1)
    assert high.mean() == pytest.approx(held[:, 4].sum() / held.sum(), abs=1e-3)
    np.testing.assert_allclose(batch.weight[high], 1 / 9, rtol=1e-6)
    np.testing.assert_allclose(batch.weight[~high], 1, rtol=1e-6)


def test_raw_weights_of_two_replays_become_those_of_one_batch_when_divided_by_their_maximum():
    """The weight is a power of p / (sum of its replay), the probability with which the transition was drawn."""
    weights, shares = [], []
    for low in (1.0, 3.0):
        replay = make(priority_exponent=1.0, importance_exponent=0.5)
        add_rows(replay, 12)
        _, sampled = replay.sample(256, 0, 0)
        replay.set_priorities(sampled, np.where(sampled.rows == 4, 9.0, low))
        replay.raw_weights = True
        batch, sampled = replay.sample(64, 0, 1)
        held = replay.priorities.weights
        weights.append(batch.weight)
        shares.append(held[sampled.streams * replay.length + sampled.rows % replay.length] / held.sum())
    together, shares = np.concatenate(weights), np.concatenate(shares)
    expected = shares**-0.5 / (shares**-0.5).max()
    np.testing.assert_allclose(together / together.max(), expected, rtol=1e-5)


def test_priorities_of_rows_that_left_the_ring_are_skipped():
    replay = make()
    add_rows(replay, 10)
    _, sampled = replay.sample(8, 0, 0)
    add_rows(replay, 20)
    before = replay.priorities.weights.copy()
    replay.set_priorities(sampled, np.full(8, 100.0))
    np.testing.assert_array_equal(before, replay.priorities.weights)


def test_a_sample_is_a_function_of_seed_update_and_contents():
    replay = make()
    add_rows(replay, 10)
    once, again, other = (replay.sample(8, 3, u)[1].rows.tolist() for u in (7, 7, 8))
    assert once == again != other


def test_uniform_sampling_reaches_every_row_equally():
    replay = make(prioritized=False)
    add_rows(replay, 15)
    batch, sampled = replay.sample(40_000, 0, 0)
    counts = np.bincount(sampled.rows, minlength=14)
    assert (batch.weight == 1).all() and len(counts) == 14
    np.testing.assert_allclose(counts, 40_000 / 14, rtol=0.1)


def test_a_transition_of_atari_costs_the_bytes_of_one_frame_and_19_more():
    replay = FrameReplay(4, 400, frame_shape=(84, 84))
    arrays = [array for array in vars(replay).values() if isinstance(array, np.ndarray)]
    assert sum(array.nbytes for array in arrays) + replay.priorities.weights.nbytes == 400 * (84 * 84 + 19)


def test_the_error_for_a_small_capacity_gives_the_smallest_one():
    with pytest.raises(
        ValueError, match=r"the replay's capacity \(10\) must hold at least 8 steps of each of 4"
    ):
        FrameReplay(4, 10, frame_shape=(1,), stack=4, n_step=3)


@settings(max_examples=40)
@given(SETTINGS)
def test_held_out_transitions_were_never_sampled_and_do_not_change_the_replay(case):
    replay, oracle = build(case)
    fill(case, replay, oracle)
    expected = oracle.transitions()
    if not expected:
        return
    drawn = set()
    for update in range(3):
        before = replay.drawn.copy(), replay.priorities.weights.copy()
        held_out = replay.sample_held_out(32, case["seed"], update)
        np.testing.assert_array_equal(before[0], replay.drawn)
        np.testing.assert_array_equal(before[1], replay.priorities.weights)
        fresh = [expected[key] for key in expected.keys() - drawn]
        assert (held_out.weight == float(bool(fresh))).all()
        looks = [transition[0] for transition in fresh or expected.values()]
        for observation in held_out.observation:
            assert observation.reshape(-1).tolist() in looks
        _, sampled = replay.sample(4, case["seed"], update)
        drawn |= set(zip(sampled.streams.tolist(), sampled.rows.tolist(), strict=True))


def test_all_fresh_transitions_are_equally_likely_and_new_rows_are_fresh():
    replay = make()
    add_rows(replay, 60)  # the ring of 20 rows is full
    for update in range(200):
        replay.sample(8, 0, update)
    assert (replay.sample_held_out(8, 0, 0).weight == 0).all()
    add_rows(replay, 4)
    held_out = replay.sample_held_out(40_000, 0, 0)
    found, counts = np.unique(held_out.observation[:, 0], return_counts=True)
    assert (held_out.weight == 1).all() and found.tolist() == [59, 60, 61, 62]
    np.testing.assert_allclose(counts, 10_000, rtol=0.05)


def test_a_held_out_batch_is_a_function_of_seed_and_update():
    replay = make(prioritized=False)
    add_rows(replay, 20)
    once, again, other = (replay.sample_held_out(8, 3, u).observation.tolist() for u in (7, 7, 8))
    assert once == again != other
    assert once != replay.sample(8, 3, 7)[0].observation.tolist()


def test_an_empty_replay_has_no_held_out_transitions():
    with pytest.raises(ValueError):
        make().sample_held_out(8, 0, 0)


def test_episode_returns_are_discounted_sums_to_the_end_of_each_episode():
    replay = FrameReplay(1, 20, frame_shape=(2,), stack=0, gamma=0.5, reward_clip=2.0)
    # Three steps to a terminal, two steps to a truncation, and one step of an unfinished episode.
    for reward, terminal, start in [(1, 0, 1), (4, 0, 0), (1, 1, 0), (1, 0, 1), (1, 0, 0), (1, 0, 1)]:
        replay.add(
            np.zeros((1, 2), np.uint8),
            np.zeros(1, np.int32),
            np.full(1, reward, np.float32),
            np.full(1, bool(terminal)),
            np.full(1, bool(start)),
        )
    assert replay.episode_returns().tolist() == [[2.25, 2.5, 1.0], [1.5, 1.0, 0.0], [1.0, 0.0, 0.0]]
    assert replay.episode_returns(most_rows=2).tolist() == [[1.0], [1.0]]


def test_noise_is_the_same_at_each_visit_and_differs_between_steps_and_seeds():
    plain, noisy = (
        FrameReplay(
            2, 4000, frame_shape=(1,), frame_dtype=np.int64, stack=0, reward_clip=1.0, n_step=2, **options
        )
        for options in ({}, {"reward_noise": 0.3})
    )
    for row in random_history(np.random.default_rng(0), 2, 1500, False):
        for replay in (plain, noisy):
            replay.add(row[0][:, None], *row[1:])
    batch, where = noisy.sample(2000, 5, 0)
    again = noisy._transitions(where.streams, where.rows, batch.weight, 5)
    np.testing.assert_array_equal(batch.reward, again.reward)
    expected = plain._transitions(where.streams, where.rows, batch.weight)
    # The second reward is discounted, and is left out where the episode ended after the first.
    is_sum_of_two = expected.discount == np.float32(0.99**2)
    noise = batch.reward - expected.reward
    assert noise.min() >= 0 and noise.max() < 0.6
    assert abs(noise[is_sum_of_two].mean() - 0.15 * 1.99) < 0.01
    other = noisy._transitions(where.streams, where.rows, batch.weight, 6).reward - expected.reward
    assert abs(np.corrcoef(noise[is_sum_of_two], other[is_sum_of_two])[0, 1]) < 0.1
    assert noisy.rewards.max() == 3  # what is stored, and recorded by rlcls.collect, is raw
