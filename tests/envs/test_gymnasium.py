import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TransformObservation

from rlcls._errors import UserError
from rlcls.envs import base
from rlcls.envs import gymnasium as registry
from rlcls.envs.wrappers import as_host_env


def balance(observation):
    """A policy that balances CartPole longer than its time limit."""
    x, speed, angle, turning = observation
    return int(angle + 0.5 * turning + 0.05 * x + 0.1 * speed > 0)


def test_cartpole_equals_gymnasium_across_episodes():
    seeds = base.environment_seeds(0, 3)
    env, singles = registry.make("CartPole-v1", 3), [gymnasium.make("CartPole-v1") for _ in range(3)]
    observations, _ = env.reset(seed=seeds)
    for row, single in enumerate(singles):
        np.testing.assert_array_equal(observations[row], single.reset(seed=int(seeds[row]))[0])
    rng, over, episodes = np.random.default_rng(0), np.zeros(3, bool), 0
    for _ in range(300):
        actions = rng.integers(2, size=3)
        observations, rewards, terminated, truncated, info = env.step(actions)
        np.testing.assert_array_equal(info["episode_start"], over)
        for row, single in enumerate(singles):
            restarted = (single.reset()[0], 0.0, False, False) if over[row] else None
            expected = restarted or single.step(actions[row])[:4]
            np.testing.assert_array_equal(observations[row], expected[0])
            assert (rewards[row], terminated[row], truncated[row]) == expected[1:]
        over = terminated | truncated
        episodes += over.sum()
    assert episodes > 20


def test_the_time_limit_of_cartpole_truncates_at_500_steps():
    env = registry.make("CartPole-v1", 2)
    assert env.describe() == "CartPole-v1: time limit 500 steps"
    observations, _ = env.reset(seed=0)
    for step in range(1, 502):
        actions = np.array([balance(observation) for observation in observations])
        observations, rewards, terminated, truncated, info = env.step(actions)
        assert not terminated.any() and (truncated == (step == 500)).all()
        assert (info["episode_start"] == (step == 501)).all() and (rewards == (step < 501)).all()


@pytest.mark.parametrize(
    ("space", "shape"),
    (
        (gymnasium.spaces.Box(0, 255, (6, 5, 3), np.uint8), (3, 6, 5)),
        (gymnasium.spaces.Box(0, 255, (6, 5), np.uint8), (1, 6, 5)),
        (gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8), (4, 84, 84)),
        (gymnasium.spaces.Box(0, 1, (6, 5, 3), np.float64), (6, 5, 3)),
        (gymnasium.spaces.Box(0, 9, (3,), np.int64), (3,)),
    ),
)
def test_images_have_channels_first_and_other_arrays_keep_their_shape(space, shape):
    picture = space.sample()

    def make_env():
        return TransformObservation(gymnasium.make("CartPole-v1"), lambda _: picture, space)

    env = registry.GymnasiumEnv(make_env, 2)
    observations, _ = env.reset(seed=0)
    dtype = {"float64": "float32", "int64": "int32"}.get(space.dtype.name, "uint8")
    assert env.spec.observation.shape == shape and env.spec.observation.dtype == dtype
    assert env.single_observation_space.contains(observations[1])
    transposed = picture.transpose(2, 0, 1) if shape == (3, 6, 5) else picture.reshape(shape)
    np.testing.assert_array_equal(observations, np.stack([transposed] * 2).astype(dtype))
    assert env.frame_stack == 0


def test_continuous_actions_have_a_range():
    spec = registry.make("Pendulum-v1", 2).spec
    assert (spec.action.shape, spec.action.dtype, spec.num_actions) == ((1,), np.float32, None)
    np.testing.assert_array_equal(spec.action_range, [[-2.0], [2.0]])


def test_arguments_reach_the_environment_and_its_records():
    env = registry.make("CartPole-v1", 2, max_episode_steps=3, sutton_barto_reward=True)
    assert env.facts()["kwargs"]["sutton_barto_reward"] is True and env.facts()["max_episode_steps"] == 3
    env.reset(seed=0)
    for _ in range(3):
        _, rewards, _, truncated, _ = env.step(np.array([0, 1]))
    assert truncated.all() and not rewards.any()
    assert env.evaluation(5).facts() == env.facts()


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"id": "CartPole-v7"}, "unknown environment 'CartPole-v7'; did you mean 'CartPole-v1'? ("),
        ({"id": "Cartpole-v1"}, "unknown environment 'Cartpole-v1'; did you mean 'CartPole-v1'? ("),
        ({"id": "nowhere:CartPole-v1"}, "nowhere:CartPole-v1 cannot be made: No module named 'nowhere'."),
        (
            {"length": 2},
            "CartPole-v1 cannot be made: CartPoleEnv.__init__() got an unexpected keyword argument",
        ),
        ({"num_envs": 0}, "env.num_envs must be at least 1, not 0"),
    ),
)
def test_a_mistake_is_one_clear_line(arguments, message):
    with pytest.raises(UserError) as error:
        registry.make(**{"id": "CartPole-v1", **arguments})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("id", "package", "extra"), (("LunarLander-v3", "Box2D", "box2d"), ("Hopper-v5", "mujoco", "mujoco"))
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(monkeypatch, id, package, extra):
    for module in [module for module in sys.modules if module.startswith(f"gymnasium.envs.{extra}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        registry.make(id, 1)
    assert str(error.value).startswith(f'{id} needs pip install "gymnasium[{extra}]" (')


BOX = gymnasium.spaces.Box(0, 1, (5,), np.float32)
BYTES = gymnasium.spaces.Box(0, 255, (5,), np.uint8)


@pytest.mark.parametrize(
    ("space", "observation", "shown"),
    [
        (BOX, np.zeros(4, np.float32), "float32 [4]"),
        (BYTES, np.zeros(5), "float64 [5]"),
        (BOX, None, "None"),
        (gymnasium.spaces.Dict(a=BOX), {"b": np.zeros(5)}, "{'b': array([0., 0., 0., 0., 0.])}"),
        (gymnasium.spaces.Dict(a=BOX), np.zeros(5), "float64 [5]"),
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_an_observation_outside_its_space_is_one_line(space, observation, shown, first):
    class Misfit(gymnasium.Env):
        observation_space, action_space = space, gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return (observation if first == 0 else space.sample()), {}

        def step(self, action):
            return observation, 0.0, False, False, {}

    with pytest.raises(UserError) as error:
        as_host_env(registry.GymnasiumEnv(Misfit, 2))
    assert str(error.value) == (
        f"Misfit: environment 0 returned the observation {shown}, but its observation_space is {space}"
    )


def test_an_exception_inside_an_environment_is_not_replaced():
    class Broken(gymnasium.Env):
        observation_space, action_space = BOX, gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return BOX.sample(), {}

        def step(self, action):
            raise ValueError("a bug in the environment")

    env = registry.GymnasiumEnv(Broken, 2)
    env.reset()
    with pytest.raises(ValueError, match="a bug in the environment"):
        env.step(np.zeros(2, np.int64))
