"""Every environment that runs on the host follows `HostEnv`."""

import importlib.util
import json
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.wrappers.vector import ClipReward, FlattenObservation, NormalizeObservation

from rlcls._errors import UserError
from rlcls.envs import atari, base, metaworld, pick, probe
from rlcls.envs import gymnasium as registry
from rlcls.envs.checker import check_host_env
from rlcls.envs.one_of_many import OneOfMany
from rlcls.envs.spaces import spec_from_spaces
from rlcls.envs.wrappers import as_host_env
from rlcls.spec import Spec


class Picture(gymnasium.Env):
    """Random 12 x 10 colour images. Episodes last three to five steps; the registered time limit is four."""

    observation_space: Any = gymnasium.spaces.Box(0, 255, (12, 10, 3), np.uint8)
    action_space: Any = gymnasium.spaces.Discrete(3, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.np_random.integers(3, 6)
        return self._observation(), {}

    def step(self, action):
        assert action in (1, 2, 3)
        self.left -= 1
        return self._observation(), float(action), bool(self.left == 0), False, {"left": self.left}

    def _observation(self) -> Any:
        return self.np_random.integers(0, 256, (12, 10, 3), dtype=np.uint8)


class Parts(Picture):
    """Observations are a dict of a grey image, float64 numbers and an integer; actions are MultiDiscrete([4, 4, 4])."""

    observation_space = gymnasium.spaces.Dict(
        screen=gymnasium.spaces.Box(0, 255, (12, 10), np.uint8),
        sensors=gymnasium.spaces.Tuple(
            [gymnasium.spaces.Box(-1, 1, (2,), np.float64), gymnasium.spaces.Discrete(9)]
        ),
    )
    action_space = gymnasium.spaces.MultiDiscrete([4, 4, 4])

    def step(self, action):
        assert action.shape == (3,)
        self.left -= 1
        return self._observation(), 1.0, bool(self.left == 0), False, {}

    def _observation(self):
        sensors = (self.np_random.uniform(-1, 1, 2), self.np_random.integers(9))
        return {"screen": self.np_random.integers(0, 256, (12, 10), dtype=np.uint8), "sensors": sensors}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr("gymnasium.envs.registration.registry", gymnasium.registry.copy())
    gymnasium.register("Picture-v0", Picture, max_episode_steps=4)
    gymnasium.register("Parts-v0", Parts)


def flat_probe(num_envs):
    """A probe in a wrapper that has arrays for a fixed number of environments."""
    return FlattenObservation(probe.make("probe/two_step", num_envs, pixels=True))


ENVS = {
    "atari": lambda n: atari.make("Breakout", n),
    "atari, lives": lambda n: atari.make("Pong", n, "nature"),
    "probe": lambda n: probe.make("probe/policy", n),
    "probe pixels": lambda n: probe.make("probe/two_step", n, pixels=True),
    "CartPole": lambda n: registry.make("CartPole-v1", n),
    "Pendulum": lambda n: registry.make("Pendulum-v1", n, max_episode_steps=30),
    "picture": lambda n: registry.make("Picture-v0", n),
    "parts": lambda n: registry.make("Parts-v0", n),
    "wrapped": lambda n: as_host_env(ClipReward(registry.make("CartPole-v1", n), -1, 0.5)),
    "one of many": lambda n: as_host_env(OneOfMany(probe.make("probe/policy", n), 3)),
    "wrapped probe": lambda n: as_host_env(flat_probe(n), flat_probe),
    "pick": lambda n: pick.make("pick", num_envs=n),
    "relay, history": lambda n: pick.make("relay", num_envs=n, history=3, horizon=9),
}
if importlib.util.find_spec("metaworld"):
    ENVS["metaworld"] = lambda n: metaworld.make("reach-v3", n, horizon=9)
every_env = pytest.mark.parametrize("name", ENVS)


def actions_of(env, steps, seed=0):
    """Random actions, [steps, N, *action]."""
    rng, spec = np.random.default_rng(seed), env.spec
    shape = (steps, env.num_envs, *spec.action.shape)
    if spec.action_range is None:
        return rng.integers(spec.num_actions, size=shape).astype(spec.action.dtype)
    return rng.uniform(*spec.action_range, size=shape).astype(spec.action.dtype)


def assert_equal_rows(one, other, rows):
    """Asserts that two steps have equal observations, rewards, ends and `episode_start` in these rows."""
    for a, b in zip(jax.tree.leaves(one[:-1]), jax.tree.leaves(other[:-1]), strict=True):
        np.testing.assert_array_equal(a[rows], b[rows])
    np.testing.assert_array_equal(one[-1]["episode_start"][rows], other[-1]["episode_start"][rows])


@every_env
def test_an_environment_describes_itself(name):
    env = ENVS[name](2)
    assert isinstance(env, base.HostEnv) and isinstance(env.spec, Spec)
    check_host_env(env)
    assert as_host_env(env) is env
    assert json.loads(json.dumps(env.facts())) == env.facts()
    assert "\n" not in env.describe() and env.name
    stacks = {"atari": 4, "atari, lives": 4, "probe pixels": 4, "relay, history": 3}
    assert env.frame_stack == stacks.get(name, 0)
    evaluation = env.evaluation(3)
    check_host_env(evaluation)
    assert (evaluation.num_envs, evaluation.name, evaluation.frame_stack) == (3, env.name, env.frame_stack)
    assert jax.tree.map(str, evaluation.spec) == jax.tree.map(str, env.spec)
    evaluation.close()
    env.close()


@every_env
def test_the_step_after_an_end_ignores_its_action_and_starts_a_new_episode(name):
    env = ENVS[name](3)
    observations, info = env.reset(seed=0)
    assert info["episode_start"].dtype == bool and info["episode_start"].all()
    over, starts = np.zeros(3, bool), 0
    for actions in actions_of(env, 200):
        env.send(actions)
        observations, rewards, terminated, truncated, info = env.recv()
        expected = jax.tree.map(lambda leaf: ((3, *leaf.shape), leaf.dtype), env.spec.observation)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), observations) == expected
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float32, bool, bool)
        if name != "atari, lives":
            np.testing.assert_array_equal(info["episode_start"], over)
        assert not (
            rewards[info["episode_start"]].any() or (terminated | truncated)[info["episode_start"]].any()
        )
        over = terminated | truncated
        starts += info["episode_start"].sum()
    assert starts or name == "atari, lives"
    env.close()


@every_env
def test_a_reset_of_single_environments_does_not_affect_the_others(name):
    env, untouched, fresh = (ENVS[name](3) for _ in range(3))
    seeds, others = base.environment_seeds(0, 3), base.environment_seeds(1, 3)
    env.reset(seed=seeds)
    untouched.reset(seed=seeds)
    actions = actions_of(env, 220)
    for step in range(20):
        before = env.step(actions[step])
        untouched.step(actions[step])
    mask = np.array([False, True, True])
    rows, rest = np.flatnonzero(mask), np.flatnonzero(~mask)
    nothing = (np.zeros(3, np.float32), np.zeros(3, bool), np.zeros(3, bool))
    observations, info = env.reset(seed=others, options={"reset_mask": mask})
    assert info["episode_start"][rows].all()
    assert_equal_rows((observations, *nothing, info), (before[0], *nothing, before[-1]), rest)
    first, first_info = fresh.reset(seed=others)
    assert_equal_rows((observations, *nothing, info), (first, *nothing, first_info), rows)
    for step in range(20, 220):
        outcome = env.step(actions[step])
        assert_equal_rows(outcome, untouched.step(actions[step]), rest)
        assert_equal_rows(outcome, fresh.step(actions[step]), rows)
    for used in (env, untouched, fresh):
        used.close()


@every_env
def test_an_environment_reset_at_its_end_is_not_reset_again_by_the_next_step(name):
    env, fresh = ENVS[name](2), ENVS[name](2)
    env.reset(seed=0)
    seeds, over = base.environment_seeds(1, 2), np.zeros(2, bool)
    actions = iter(actions_of(env, 2000))
    while not over.any():
        _, _, terminated, truncated, _ = env.step(next(actions))
        over = terminated | truncated
    env.reset(seed=seeds, options={"reset_mask": over})
    fresh.reset(seed=seeds)
    rows = np.flatnonzero(over)
    for _ in range(20):
        action = next(actions)
        assert_equal_rows(env.step(action), fresh.step(action), rows)
    env.close()
    fresh.close()


@every_env
def test_send_and_recv_take_turns(name):
    env, other = ENVS[name](2), ENVS[name](2)
    env.reset(seed=0)
    other.reset(seed=0)
    actions = actions_of(env, 1)[0]
    env.send(actions)
    with pytest.raises(RuntimeError, match="twice"):
        env.send(actions)
    with pytest.raises(RuntimeError, match="between send and recv"):
        env.reset(options={"reset_mask": np.array([True, False])})
    assert_equal_rows(env.recv(), other.step(actions), [0, 1])
    env.send(actions)  # a reset of all environments drops this step
    first, again = env.reset(seed=1), other.reset(seed=1)
    nothing = (np.zeros(2), np.zeros(2), np.zeros(2))
    assert_equal_rows((first[0], *nothing, first[1]), (again[0], *nothing, again[1]), [0, 1])
    env.close()
    other.close()


@pytest.mark.untyped
@every_env
def test_an_unknown_action_is_refused_and_nothing_is_played(name):
    env, other = ENVS[name](2), ENVS[name](2)
    env.reset(seed=0)
    other.reset(seed=0)
    good = actions_of(env, 1)[0]
    wrong = [good[:1], good[None]]
    if env.spec.action_range is None:
        wrong += [
            good + 0.5,
            np.where(good == good.max(), -1, good),
            np.full_like(good, env.spec.num_actions),
        ]
    else:
        wrong += [good * np.nan, good.astype(str)]
    for actions in wrong:
        with pytest.raises(
            UserError, match=r"must be|must have shape|has \d+ actions, 0 to \d+, but the agent sent"
        ):
            env.send(actions)
    assert_equal_rows(env.step(good), other.step(good), [0, 1])
    env.close()
    other.close()


def test_an_agent_with_more_outputs_than_actions_is_refused():
    env = atari.make("Breakout", 2)
    env.reset(seed=0)
    with pytest.raises(UserError) as error:
        env.send(np.array([0, 17]))
    assert str(error.value) == "Breakout has 4 actions, 0 to 3, but the agent sent 17"
    env.close()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"options": {"mask": 1}}, "reset takes the option reset_mask, not ['mask']"),
        (
            {"options": {"reset_mask": np.zeros(2, bool)}},
            "reset_mask must be bool [2] with at least one True",
        ),
        ({"options": {"reset_mask": np.ones(3, bool)}}, "reset_mask must be bool [2] with at least one True"),
        ({"seed": np.zeros(1, int)}, "reset needs a seed for each of 2 environments, not (1,)"),
    ),
)
def test_unsuitable_arguments_of_reset_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        probe.make("probe/policy", 2).reset(**arguments)
    assert str(error.value).startswith(message)


def test_the_evaluation_of_a_wrapped_game_has_the_evaluation_protocol_and_the_wrappers():
    env = as_host_env(ClipReward(atari.make("Breakout", 2, "nature"), -0.5, 0.5))
    evaluation = env.evaluation(3)
    assert evaluation.env.env.protocol == atari.PROTOCOLS["nature"].evaluation()
    assert (env.frame_stack, env.frame_skip, env.evaluation_epsilon) == (4, 4, 0.05)
    assert env.describe().endswith("; wrapped in ClipReward")
    evaluation.reset(seed=0)
    rewards = np.stack([evaluation.step(actions)[1] for actions in actions_of(evaluation, 200)])
    assert set(np.unique(rewards)) == {0, 0.5}
    evaluation.close()
    env.close()


def test_with_a_wrapper_that_changes_observations_whole_stacks_are_stored():
    env = as_host_env(flat_probe(2))
    assert (env.frame_stack, env.spec.observation.shape) == (0, (4 * 84 * 84,))
    with pytest.raises(
        UserError, match=r"FlattenObservation cannot be copied for the evaluation \(.*\); give it"
    ):
        env.evaluation(3)


def test_observations_of_a_wrapper_in_float64_become_float32():
    env = as_host_env(NormalizeObservation(registry.make("CartPole-v1", 1)))
    assert env.reset(seed=0)[0].dtype == env.step(np.zeros(1, int))[0].dtype == np.float32


def test_a_wrapper_that_cannot_reset_single_environments_is_refused_before_training():
    with pytest.raises(
        UserError,
        match="NormalizeObservation does not support partial resets|Wrapped.reset fails with options",
    ):
        as_host_env(NormalizeObservation(registry.make("CartPole-v1", 2)))


def test_the_error_for_a_nan_names_the_environment_and_the_step():
    zeros, pictures = np.zeros((3, 2), np.float32), np.zeros((3, 4, 4), np.uint8)
    wrong = zeros.copy()
    wrong[2, 1] = np.inf
    base.check_finite("Pong", 7, {"a": zeros, "b": pictures}, np.zeros(3, np.float32))
    with pytest.raises(UserError, match="^Pong: an observation of environment 2 is not finite at step 7$"):
        base.check_finite("Pong", 7, {"a": wrong, "b": pictures})
    with pytest.raises(UserError, match="^Pong: the reward of environment 1 is -inf at step 1,000$"):
        base.check_finite("Pong", 1000, pictures, np.array([0, -np.inf, 0], np.float32))


@pytest.mark.untyped
def test_an_environment_that_breaks_the_interface_is_refused_in_one_line():
    class Mute(probe.ProbeVectorEnv):
        send = property()
        evaluation = property()

    class Unmarked(probe.ProbeVectorEnv):
        def reset(self, **arguments):
            return super().reset(**arguments)[0], {}

    class Wide(probe.ProbeVectorEnv):
        def reset(self, **arguments):
            observations, info = super().reset(**arguments)
            return observations.astype(np.float64), info

    class Whole(probe.ProbeVectorEnv):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)

    class Plain(probe.ProbeVectorEnv):
        def reset(self, *, seed=None):
            return super().reset(seed=seed)

    class Flat(probe.ProbeVectorEnv):
        def recv(self):
            observations, *rest = super().recv()
            return observations[:, 0], *rest

    class Single(probe.ProbeVectorEnv):
        def recv(self):
            observations, rewards, *rest = super().recv()
            return observations, rewards.sum(), *rest

    class Nan(probe.ProbeVectorEnv):
        def recv(self):
            observations, _, *rest = super().recv()
            return observations, np.array([0.0, np.nan], np.float32), *rest

    class Started(probe.ProbeVectorEnv):
        def recv(self):
            return *super().recv()[:-1], {}

    prefix = f"env: {__name__}.test_an_environment_that_breaks_the_interface_is_refused_in_one_line.<locals>"
    for kind, message in (
        (Mute, f"{prefix}.Mute has no send and evaluation; rlcls.envs.base.HostEnv lists what it needs"),
        (Unmarked, f"{prefix}.Unmarked has no episode_start in the info of reset: "),
        (
            Wide,
            f"{prefix}.Wide.reset returns observations float64 [2, 1], but its spec says float32 [2, 1] for 2 "
            "environments",
        ),
        (
            Flat,
            f"{prefix}.Flat.step returns observations float32 [2], but its spec says float32 [2, 1] for 2 ",
        ),
        (
            Single,
            f"{prefix}.Single.step must return rewards as 2 floats, one for each environment, not float32 []",
        ),
        (Nan, "probe/policy: the reward of environment 1 is nan at step 1"),
        (
            Whole,
            f"{prefix}.Whole.reset must reset only the environments where options['reset_mask'] is True; after "
            "[True, False] episode_start is [True, True] and should be [True, False]",
        ),
        (Plain, f"{prefix}.Plain.reset fails with options={{'reset_mask': bool [2]}}, which resets only "),
        (Started, f"{prefix}.Started has no episode_start in the info of step: "),
    ):
        with pytest.raises(UserError) as error:
            as_host_env(kind(probe.PROBES["probe/policy"], 2))
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    vector_env = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    with pytest.raises(UserError, match=r"SyncVectorEnv has no frame_stack, .* and facts; "):
        as_host_env(ClipReward(vector_env, -1, 1))


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    (
        (gymnasium.spaces.Text(3), gymnasium.spaces.Discrete(2), "observations of Text"),
        (
            gymnasium.spaces.Discrete(2),
            gymnasium.spaces.MultiDiscrete([2, 3]),
            r"actions of MultiDiscrete\(\[2 3\]",
        ),
        (gymnasium.spaces.Discrete(2), gymnasium.spaces.Box(0, 1, (2, 2)), "actions of Box"),
    ),
)
def test_a_space_without_a_spec_is_one_clear_line(observations, actions, message):
    with pytest.raises(UserError, match=f"^{message}.* are not supported: they must be .*"):
        spec_from_spaces(observations, actions)
