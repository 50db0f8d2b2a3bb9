"""An evaluation plays whole episodes, a fixed number in each environment."""

import functools

import gymnasium
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls import heads, networks
from rlcls.agents import DQN
from rlcls.envs.gymnax import minatar
from rlcls.evaluation import EpisodeEvaluator, evaluate


class Scripted(gymnasium.vector.VectorEnv):
    """The episodes of environment i have the lengths `lengths[i]`, in turn. The reward is the action.

    An observation is (environment, episode, step in the episode, seed). Episodes are terminated and truncated in turn.
    """

    def __init__(self, lengths):
        self.lengths = lengths
        self.num_envs = len(lengths)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.single_action_space = gymnasium.spaces.Discrete(10)

    def reset(self, *, seed=None, options=None):
        assert seed.shape == (self.num_envs,)
        self.seeds = seed
        self.episode = np.zeros(self.num_envs, int)
        self.at = np.zeros(self.num_envs, int)
        self.over = np.zeros(self.num_envs, bool)
        return self.observe(), {}

    def observe(self):
        return np.stack([np.arange(self.num_envs), self.episode, self.at, self.seeds], axis=1)

    def step(self, actions):
        start = self.over.copy()
        self.episode += start
        self.at = np.where(start, 0, self.at + 1)
        limit = np.array([row[k % len(row)] for row, k in zip(self.lengths, self.episode, strict=True)])
        self.over = self.at == limit
        terminated, truncated = self.over & (self.episode % 2 == 0), self.over & (self.episode % 2 == 1)
        rewards = np.where(start, 1000.0, actions).astype(
            np.float32
        )  # a reward of 1000 at a reset must not be counted
        return self.observe(), rewards, terminated, truncated, {"episode_start": start}


def one_each(observations, step):
    return np.ones(len(observations), np.int32)


def test_every_environment_plays_the_same_number_of_episodes():
    result = evaluate(one_each, Scripted([[2], [50], [3, 7]]), episodes=6, seed=0)
    assert result.lengths.tolist() == [2, 50, 3, 2, 50, 7]
    assert result.returns.tolist() == [2, 50, 3, 2, 50, 7]


def test_fewer_episodes_than_environments_are_played_by_the_first_ones():
    assert evaluate(one_each, Scripted([[9], [8], [1]]), episodes=2, seed=0).lengths.tolist() == [9, 8]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=4),
    episodes=st.integers(1, 9),
)
def test_the_episodes_equal_those_of_a_loop_over_environments(lengths, episodes):
    result = evaluate(
        lambda observations, _: observations[:, 2] + 1, Scripted(lengths), episodes=episodes, seed=1
    )
    expected = [lengths[k % len(lengths)] for k in range(episodes)]
    expected = [row[k // len(lengths) % len(row)] for k, row in enumerate(expected)]
    assert result.lengths.tolist() == expected
    assert result.returns.tolist() == [n * (n + 1) / 2 for n in expected]


def test_every_environment_of_every_evaluation_has_its_own_seed():
    seen = []
    for seed in (0, 1, 0, [0, 1]):
        env = Scripted([[1]] * 8)
        evaluate(one_each, env, episodes=8, seed=seed)
        seen.append(set(env.seeds.tolist()))
    first, second, again, sequence = seen
    assert len(first) == 8 and first == again
    assert not first & second and not first & sequence


def test_the_policy_gets_the_number_of_the_step():
    steps = []

    def act(observations, step):
        steps.append(step)
        return one_each(observations, step)

    evaluate(act, Scripted([[3]]), episodes=2, seed=0)
    assert steps == list(range(3 + 1 + 3))  # one step is the reset


def test_reports_give_the_number_of_finished_episodes():
    reports = []
    evaluate(one_each, Scripted([[1], [4]]), episodes=2, seed=0, report=reports.append)
    assert reports == [1, 1, 1, 2]


def test_the_summary_has_means_and_the_returns():
    summary = evaluate(one_each, Scripted([[1, 3]]), episodes=2, seed=0).summary()
    assert summary == {"return_mean": 2.0, "return_std": 1.0, "returns": [1.0, 3.0], "length_mean": 2.0}


def test_an_evaluation_of_no_episodes_is_refused():
    with pytest.raises(ValueError, match="episodes must be at least 1, not 0"):
        evaluate(one_each, Scripted([[1]]), episodes=0, seed=0)


@pytest.mark.parametrize("episodes", (5, 40))
@pytest.mark.parametrize("history", (1, 3))
def test_episodes_inside_a_compiled_program_equal_those_played_step_by_step(episodes, history):
    pytest.importorskip("gymnax")
    env = minatar("Breakout", 2, history=history)
    backbone = functools.partial(networks.MLP, hidden=(8,))
    agent = DQN(env.spec, backbone, heads.make("mse"))
    evaluator = EpisodeEvaluator(agent, env, seed=3, episodes=episodes, epsilon=0.3)
    acting = agent.acting(agent.init(jax.random.key(0)))
    reports = []
    for number in (0, 7):
        quick = evaluator.play(acting, number, lambda done, total: reports.append((done, total)))
        plain = evaluator.play(acting, number, lambda done, total: None, record=lambda actions: None)
        np.testing.assert_array_equal(quick.returns, plain.returns)
        np.testing.assert_array_equal(quick.lengths, plain.lengths)
    assert reports[-1] == (episodes, episodes)
    other = evaluator.with_seed(4)
    if episodes == 40:  # five episodes can have equal lengths
        assert other.play(acting, 0, lambda *_: None).lengths.tolist() != quick.lengths.tolist()
    fresh = EpisodeEvaluator(agent, env, seed=4, episodes=episodes, epsilon=0.3)
    np.testing.assert_array_equal(
        other.play(acting, 0, lambda *_: None).lengths, fresh.play(acting, 0, lambda *_: None).lengths
    )
