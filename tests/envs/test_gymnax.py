"""Environments of gymnax as pure functions without autoreset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.envs import gymnax as adapter
from rlcls.envs.autoreset import Autoreset
from rlcls.envs.base import HostEnv, JaxEnv
from rlcls.envs.checker import check_host_env
from rlcls.spec import Spec

pytest.importorskip("gymnax")

GAMES = {"Breakout": (4, 3), "SpaceInvaders": (6, 4), "Asterix": (4, 5), "Freeway": (7, 3)}


@pytest.mark.parametrize("game", GAMES)
def test_a_game_of_minatar_is_a_host_env_and_a_jax_env(game):
    env = adapter.minatar(game, num_envs=2)
    channels, actions = GAMES[game]
    assert isinstance(env, HostEnv) and isinstance(env.env, JaxEnv)
    assert env.spec.observation == jax.ShapeDtypeStruct((10, 10, channels), bool)
    assert env.spec.num_actions == actions
    check_host_env(env)


def test_steps_equal_those_of_gymnax_without_the_autoreset():
    import gymnax

    theirs, params = gymnax.make("Breakout-MinAtar")
    ours = adapter.minatar("Breakout", 1).env
    step, their_step = jax.jit(ours.step), jax.jit(theirs.step_env)
    state, seen = ours.reset(jax.random.key(0))
    expected, their_state = theirs.reset_env(jax.random.key(0), params)
    for number in range(60):
        np.testing.assert_array_equal(seen, np.asarray(expected) > 0)
        key, action = jax.random.key(number), number % 3
        state, seen, reward, terminated, truncated = step(state, action, key)
        expected, their_state, their_reward, their_end, _ = their_step(key, their_state, action, params)
        assert (float(reward), bool(terminated)) == (float(their_reward), bool(their_end))
        assert not truncated
        if terminated:
            break
    assert terminated


def test_a_time_limit_truncates_and_does_not_terminate():
    env = adapter.make("CartPole-v1", 1).env
    episodes = Autoreset(env)
    playing = episodes.begin(jax.random.key(0))
    limit = env.params.max_steps_in_episode
    state = playing.state._replace(env=playing.state.env.replace(time=jnp.asarray(limit - 1)))
    playing, outcome = episodes.step(playing._replace(state=state), 0)
    assert outcome.truncated and not outcome.terminated and playing.over
    after, outcome = episodes.step(playing, 0)
    assert outcome.starts and outcome.reward == 0 and not after.over


def test_sticky_actions_repeat_the_previous_action():
    env = adapter.minatar("Breakout", 1, sticky_actions=0.25).env
    state, _ = env.reset(jax.random.key(0))
    state = state._replace(action=jnp.asarray(2))
    played = jax.jit(jax.vmap(lambda key: env.step(state, 0, key)[0].action))(
        jax.random.split(jax.random.key(1), 4000)
    )
    assert (np.asarray(played) == 2).mean() == pytest.approx(0.25, abs=0.03)


def test_continuous_actions_have_their_range():
    spec = adapter.make("Pendulum-v1", 1).spec
    assert spec.num_actions is None and spec.action_range[0].tolist() == [-2.0]


def test_each_channel_is_drawn_in_its_own_colour():
    env = adapter.minatar("Breakout", 1).env
    state, seen = env.reset(jax.random.key(0))
    picture = env.draw(state)
    assert picture.shape == (80, 80, 3) and picture.dtype == np.uint8
    filled = (picture[::8, ::8] != 24).any(-1)
    np.testing.assert_array_equal(filled, np.asarray(seen).any(-1))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: adapter.minatar("Brekout", 1),
            r"unknown game 'Brekout' of MinAtar; did you mean 'Breakout'\?",
        ),
        (
            lambda: adapter.make("CartPole", 1),
            r"unknown environment 'CartPole' of gymnax; did you mean 'CartPole-v1'",
        ),
    ],
)
def test_an_unknown_name_is_one_line(make, words):
    with pytest.raises(UserError, match=words):
        make()


class Corridor:
    """An environment with one state, whose reward is the action."""

    spec = Spec(jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((), np.int32), 2, None)

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros(1)

    def step(self, state, action, key):
        return state, jnp.zeros(1), jnp.asarray(action, jnp.float32), jnp.asarray(True), jnp.asarray(False)


@pytest.mark.untyped
def test_a_wrong_jax_env_is_refused_in_one_line():
    assert isinstance(adapter.as_jax_env(Corridor()), Corridor)
    assert adapter.as_jax_env(object()) is None
    assert adapter.as_jax_env(adapter.minatar("Breakout", 1)) is None
    four = type("Four", (Corridor,), {"step": lambda self, state, action, key: (state, 0, 0, 0)})
    with pytest.raises(
        UserError, match=r"Four.step must return \(state, observation, reward, terminated, trunc"
    ):
        adapter.as_jax_env(four())
    other = type("Other", (Corridor,), {"step": lambda self, state, *_: ((state, state), 0, 0, 0, 0)})
    with pytest.raises(UserError, match=r"must return a state of the same structure"):
        adapter.as_jax_env(other())
