"""Transitions of a recording against a slow and simple reference with loops over episodes."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlcls._errors import UserError
from rlcls.datasets import BEGINS, CONTINUES, CUT, TRUNCATED, Layout, Rows, Streams, Transitions, Writer
from rlcls.replay import FrameReplay
from rlcls.training import Dataset

GAMMA = 0.9
CASES = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 12), min_size=1, max_size=8),
        "stack": st.sampled_from([0, 1, 2, 4]),
        "n_step": st.integers(1, 5),
        "reward_clip": st.sampled_from([0.0, 1.0]),
        "reward_noise": st.sampled_from([0.0, 0.3, 1.0]),
        "reward_scale": st.sampled_from([1.0, 0.5]),
        "seed": st.integers(0, 2**31),
    }
)


def random_episodes(case):
    """[start, [[frame, action, reward, terminal], ...]] of each episode, with cuts, terminals and lost lives."""
    random, frame, episodes = np.random.default_rng(case["seed"]), 1, []
    for length in case["lengths"]:
        steps = [
            [frame + i, int(random.integers(5)), float(random.integers(-3, 4)), bool(random.random() < 0.15)]
            for i in range(length)
        ]
        frame += length
        episodes.append((CUT if random.random() < 0.3 else BEGINS, steps))
    return episodes


def as_rows(episodes):
    steps = [step for _, episode in episodes for step in episode]
    starts = [s for start, episode in episodes for s in [start] + [CONTINUES] * (len(episode) - 1)]
    for last, (_, episode) in zip(np.cumsum([len(e) for _, e in episodes]) - 1, episodes, strict=True):
        if len(episode) % 2 == 0:  # which changes no transition
            starts[last] = TRUNCATED
    frames, actions, rewards, terminals = zip(*steps, strict=True)
    return Rows(
        np.array(frames, np.int64)[:, None],
        np.array(actions, np.int32),
        np.array(rewards, np.float32),
        np.array(terminals),
        np.array(starts, np.uint8),
    )


def learnt_rewards(episodes, clip, eta, scale, seed):
    """The reward of each step of each episode: clipped, with noise, and scaled."""
    random = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, 0, 2]))
    rewards = []
    for _, steps in episodes:
        rewards.append([])
        for _, _, reward, _ in steps:
            clipped = max(-clip, min(clip, reward)) if clip else reward
            rewards[-1].append(scale * (clipped + eta * float(random.random(dtype=np.float32))))
    return rewards


def oracle(episodes, stack, n_step, rewards):
    """row -> (observation, action, reward, discount, next observation, next action, return to go)."""
    expected, row = {}, 0

    def seen(steps, i):
        if not stack:
            return [steps[i][0]]
        return [steps[k][0] if k >= 0 else 0 for k in range(i - stack + 1, i + 1)]

    for (start, steps), learnt in zip(episodes, rewards, strict=True):
        for i, (_, action, _, terminal) in enumerate(steps):
            known = terminal or i + 1 < len(steps)
            unknown_past = start == CUT and i < stack - 1
            if known and not unknown_past:
                reward, discount, j = 0.0, 1.0, i
                while True:
                    reward += GAMMA ** (j - i) * learnt[j]
                    discount = 0.0 if steps[j][3] else discount * GAMMA
                    j += 1
                    over = steps[j - 1][3] or j == len(steps)
                    if over or j - i == n_step or (j == len(steps) - 1 and not steps[j][3]):
                        break
                to_go, k = 0.0, i
                while k < len(steps):
                    to_go += GAMMA ** (k - i) * learnt[k]
                    if steps[k][3]:
                        break
                    k += 1
                after = min(j, len(steps) - 1)
                expected[row + i] = (
                    seen(steps, i), action, reward, discount, seen(steps, after), steps[after][1], to_go,
                )  # fmt: skip
        row += len(steps)
    return expected


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=CASES)
def test_transitions_equal_the_reference(case, tmp_path_factory, record):
    episodes = random_episodes(case)
    stack, n_step, seed = case["stack"], case["n_step"], case["seed"]
    rewarding = {name: case[name] for name in ("reward_clip", "reward_noise", "reward_scale")}
    layout = Layout(game="test", frame_shape=(1,), frame_dtype="int64", stack=stack, num_actions=5)
    recording = record(tmp_path_factory.mktemp("recording"), as_rows(episodes), layout)
    expected = oracle(episodes, stack, n_step, learnt_rewards(episodes, *rewarding.values(), seed))
    options = {"n_step": n_step, "gamma": GAMMA, "seed": seed, **rewarding}
    if not expected:
        with pytest.raises(UserError, match="has no transition"):
            Transitions(recording, **options)
        return
    data = Transitions(recording, **options, sampling="epochs")
    assert data.count == len(expected)
    batch, (rows,) = data.sample(data.count, 0, 0)
    assert sorted(rows) == sorted(expected)
    for b, row in enumerate(rows):
        observation, action, reward, discount, after, next_action, to_go = expected[row]
        assert batch.observation[b].ravel().tolist() == observation
        assert batch.next_observation[b].ravel().tolist() == after
        assert (batch.action[b], batch.next_action[b], batch.weight[b]) == (action, next_action, 1)
        np.testing.assert_allclose(
            [batch.reward[b], batch.discount[b], batch.return_to_go[b]],
            [reward, discount, to_go],
            rtol=1e-5,
            atol=1e-6,
        )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=CASES, held_out=st.sampled_from([0.0, 0.5]))
def test_each_transition_on_the_device_is_that_of_the_host(
    case, held_out, tmp_path_factory, record, compare_on_device
):
    layout = Layout(game="test", frame_shape=(1,), frame_dtype="int32", stack=case["stack"], num_actions=5)
    rows = as_rows(random_episodes(case))
    rows = rows._replace(frames=rows.frames.astype(np.int32))
    recording = record(tmp_path_factory.mktemp("recording"), rows, layout)
    rewarding = {name: case[name] for name in ("reward_clip", "reward_noise", "reward_scale")}
    try:
        data = Transitions(
            recording,
            n_step=case["n_step"],
            gamma=GAMMA,
            seed=case["seed"],
            held_out=held_out,
            **rewarding,
        )
    except UserError:
        return
    compare_on_device(data, np.unique(data.draw(200, 0, 0)))


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_recording_of_streams_is_sampled_like_a_replay(n_step, tmp_path):
    random, streams, steps = np.random.default_rng(0), 3, 200
    options = {"n_step": n_step, "gamma": GAMMA, "reward_clip": 1.0}
    replay = FrameReplay(streams, 10_000, frame_shape=(1,), frame_dtype=np.int64, stack=4, **options)
    layout = Layout(game="test", frame_shape=(1,), frame_dtype="int64", stack=4, num_actions=5)
    pending, starts = np.zeros(streams, bool), np.ones(streams, bool)
    with Writer(tmp_path / "recording", layout, {}) as writer:
        recorder = Streams(writer, streams)
        for step in range(steps):
            frames = (1 + np.arange(streams) + step * streams)[:, None, None] * np.ones((1, 4, 1), np.int64)
            over = ~pending & (random.random(streams) < 0.1)
            row = frames, random.integers(0, 5, streams), random.normal(size=streams), over, starts
            replay.add(*row)
            recorder.add(*row)
            cut = ~pending & ~over & (random.random(streams) < 0.05)
            starts, pending = pending, over | cut
        recorder.close()
        data = Transitions(writer.finish(), **options)
    batch, where = replay.sample(300, 0, 0)
    place = {int(frame): row for row, frame in enumerate(data.recording.columns.frames[:, 0])}
    recorded = data.at(np.array([place[int(frame)] for frame in batch.observation[:, -1, 0]]))
    assert len(where.rows) == 300
    for name in ("observation", "action", "reward", "discount", "next_observation"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(recorded, name), name)


def test_a_batch_is_a_function_of_seed_and_number(tmp_path, record, make_rows, layout):
    recording = record(tmp_path / "a", make_rows(layout, [30, 20]))
    data = Transitions(recording)
    assert isinstance(data, Dataset) and data.spec.observation.shape == (4, 2, 3)
    (one, (rows,)), (two, (same,)) = data.sample(16, 1, 2), Transitions(recording).sample(16, 1, 2)
    assert (rows == same).all() and (one.observation == two.observation).all()
    assert (data.sample(16, 1, 3)[1][0] != rows).any()


def test_noise_is_the_same_at_each_visit_and_differs_between_rows_and_seeds(
    tmp_path, record, make_rows, layout
):
    rows = make_rows(layout, [4000, 3000])
    recording = record(tmp_path / "a", rows)
    data = Transitions(recording, reward_noise=0.3, seed=5)
    everywhere = np.arange(3999)
    noise = data.at(everywhere).reward - rows.rewards[:3999]
    assert noise.min() >= 0 and noise.max() <= 0.3 and abs(noise.mean() - 0.15) < 0.01
    assert len(np.unique(noise)) > 3000
    batch, (drawn,) = data.sample(500, 1, 2)
    np.testing.assert_array_equal(batch.reward, data.at(drawn).reward)
    other = Transitions(recording, reward_noise=0.3, seed=6).at(everywhere).reward
    assert abs(np.corrcoef(noise, other - rows.rewards[:3999])[0, 1]) < 0.1


def test_continuous_actions_are_sampled_as_they_were_recorded(tmp_path, record):
    layout = Layout(
        game="arm", frame_shape=(3,), frame_dtype="float32", action_low=(-1, -1), action_high=(1, 1)
    )
    frames = np.arange(15, dtype=np.float32).reshape(5, 3)
    actions = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
    starts = np.array([BEGINS, 0, 0, 0, 0], np.uint8)
    rows = Rows(frames, actions, np.ones(5, np.float32), np.zeros(5, bool), starts)
    data = Transitions(record(tmp_path / "a", rows, layout))
    batch = data.at(np.arange(4))
    np.testing.assert_array_equal(batch.action, actions[:4])
    np.testing.assert_array_equal(batch.next_action, actions[1:])
    np.testing.assert_array_equal(batch.next_observation, frames[1:])
    assert data.spec.num_actions is None and data.spec.action.shape == (2,)


@pytest.mark.parametrize(
    "options",
    [
        {"n_step": 0},
        {"gamma": 1.5},
        {"reward_clip": -1.0},
        {"reward_noise": -0.1},
        {"reward_scale": 0.0},
        {"sampling": "all"},
    ],
)
def test_an_option_out_of_range_is_refused(options, tmp_path, record, make_rows, layout):
    with pytest.raises(ValueError, match=next(iter(options))):
        Transitions(record(tmp_path / "a", make_rows(layout, [9])), **options)


def test_with_successes_only_all_sampled_episodes_have_a_return_above_zero(
    record, make_rows, layout, tmp_path
):
    lengths = [4, 6, 3, 8, 5, 7]
    rows = make_rows(layout, lengths)
    begins = np.cumsum([0, *lengths[:-1]])
    returns = np.add.reduceat(rows.rewards.astype(np.float64), begins)
    data = Transitions(record(tmp_path / "a", rows), successes_only=True)
    expected = {
        row
        for begin, length, total in zip(begins, lengths, returns, strict=True)
        for row in range(begin, begin + length - 1)
        if total > 0
    }
    assert (
        set(data.draw(2000, 0, 0).tolist()) == expected and 0 < len(expected) == data.count < sum(lengths) - 6
    )
    failures = rows._replace(rewards=-np.abs(rows.rewards))
    with pytest.raises(UserError, match="has no transition of an episode with a return above 0"):
        Transitions(record(tmp_path / "b", failures), successes_only=True)
