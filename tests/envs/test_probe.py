import jax
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.envs import base, probe

probes = pytest.mark.parametrize("game", probe.PROBES)


@probes
@pytest.mark.parametrize("gamma", (0.0, 0.5, 0.99))
def test_value_iteration_gives_the_closed_form(game, gamma):
    mdp = probe.PROBES[game]
    key = jax.random.key(0)
    q_values = np.zeros((mdp.num_states, mdp.num_actions))
    for _ in range(3):  # an episode has at most two steps
        update = np.empty_like(q_values)
        for state, action in np.ndindex(q_values.shape):
            after, _, reward, terminated, _ = mdp.step(np.int32(state), np.int32(action), key)
            update[state, action] = reward + (0 if terminated else gamma * q_values[after].max())
        q_values = update
    np.testing.assert_allclose(q_values, mdp.q_values(gamma), rtol=1e-7)


@probes
def test_the_pure_functions_run_under_jit_and_vmap(game):
    mdp = probe.PROBES[game]
    assert isinstance(mdp, base.JaxEnv)
    keys = jax.random.split(jax.random.key(0), 64)
    states, observations = jax.jit(jax.vmap(mdp.reset))(keys)
    assert set(np.unique(states)) == set(mdp.starts)
    np.testing.assert_array_equal(observations, mdp.observations()[states])
    step = jax.jit(jax.vmap(mdp.step))
    states, observations, rewards, terminated, truncated = step(states, np.zeros(64, np.int32), keys)
    assert (
        observations.shape == (64, 1) and rewards.shape == terminated.shape == (64,) and not truncated.any()
    )


@probes
@pytest.mark.parametrize("pixels", (False, True))
def test_the_vector_environment_equals_the_pure_functions(game, pixels):
    mdp = probe.PROBES[game]
    env = probe.make(game, 3, pixels=pixels)
    shown, rng = mdp.observations(pixels=pixels), np.random.default_rng(0)
    observations, info = env.reset(seed=0)
    assert info["episode_start"].all()
    states = env._states.copy()
    np.testing.assert_array_equal(observations, shown[states])
    over = np.zeros(3, bool)
    for _ in range(20):
        actions = rng.integers(mdp.num_actions, size=3)
        observations, rewards, terminated, truncated, info = env.step(actions)
        np.testing.assert_array_equal(info["episode_start"], over)
        assert not truncated.any() and rewards.dtype == np.float32
        for row in range(3):
            if over[row]:
                assert rewards[row] == 0 and not terminated[row]
                states[row] = env._states[row]
                np.testing.assert_array_equal(observations[row], shown[states[row]])
                continue
            states[row], seen, reward, ends, _ = mdp.step(states[row], actions[row], jax.random.key(0))
            assert (rewards[row], terminated[row]) == (reward, ends)
            if not pixels:
                np.testing.assert_array_equal(observations[row], seen)
            elif not ends:
                np.testing.assert_array_equal(observations[row], shown[states[row]])
        over = terminated
    assert env.single_observation_space.contains(observations[0])


def test_a_stack_of_frames_begins_with_zeros_as_on_atari():
    env = probe.make("probe/two_step", 1, pixels=True)
    env.reset(seed=0)
    for _ in range(2):  # two episodes
        second = env.step(np.zeros(1, np.int32))[0][0]
        assert [int(frame.max()) for frame in second] == [0, 0, 85, 255]
        env.step(np.zeros(1, np.int32))
        first = env.step(np.zeros(1, np.int32))[0][0]
        assert [int(frame.max()) for frame in first] == [0, 0, 0, 85]


def test_a_reset_with_seeds_equals_a_new_environment():
    used, fresh = (probe.make("probe/policy", 8) for _ in range(2))
    used.reset(seed=1)
    for _ in range(7):
        used.step(np.zeros(8, np.int32))
    seeds = base.environment_seeds((0, 3), 8)
    np.testing.assert_array_equal(used.reset(seed=seeds)[0], fresh.reset(seed=seeds)[0])
    for _ in range(10):
        one, other = (env.step(np.ones(8, np.int32)) for env in (used, fresh))
        for a, b in zip(one[:3], other[:3], strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_unknown_probe_is_one_clear_line():
    with pytest.raises(UserError, match=r"^unknown game 'probe/polcy'; did you mean 'probe/policy'\? \("):
        probe.make("probe/polcy", 1)
