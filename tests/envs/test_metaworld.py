import builtins
import sys
import warnings

import imageio.v3 as imageio
import imageio_ffmpeg
import jax
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.envs import base
from rlcls.evaluation.film import film

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("metaworld", exc_type=ImportError)

from rlcls.envs import metaworld

TASKS = ("pick-place-v3", "drawer-open-v3", "stick-push-v3")


def play(env, steps, *, look=lambda step: None, disturb=lambda step, actions: actions):
    """The stacked results of `steps` steps with the expert's actions."""
    results = []
    for step in range(steps):
        actions = disturb(step, env.scripted_actions(look(step)))
        observations, rewards, terminated, truncated, info = env.step(actions)
        results.append((observations, rewards, terminated, truncated, info["episode_start"], actions))
    return [np.stack(column) for column in zip(*results, strict=True)]


def random_actions(steps, num_envs, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, num_envs, 4)).astype(np.float32)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_and_success_gives_reward_1_and_terminates(task):
    env = metaworld.make(task, 4)
    env.reset(seed=0)
    _, rewards, terminated, truncated, starts, actions = play(env, 40)
    episodes = (terminated | truncated).sum()
    assert episodes >= 4 and terminated.sum() >= 0.75 * episodes
    np.testing.assert_array_equal(rewards, terminated.astype(np.float32))
    np.testing.assert_array_equal(starts[1:], (terminated | truncated)[:-1])
    assert np.abs(actions).max() <= 1


def test_observations_of_the_50_tasks_have_14_or_21_numbers():
    assert len(metaworld.tasks()) == 50
    sizes = {task: metaworld.make(task, 1).spec.observation.shape for task in ("hammer-v3", "reach-v3")}
    assert sizes == {"hammer-v3": (21,), "reach-v3": (14,)}


def test_actions_beyond_the_range_are_clipped():
    env, clipped = metaworld.make("reach-v3", 1), metaworld.make("reach-v3", 1)
    np.testing.assert_array_equal(env.spec.action_range, [[-1] * 4, [1] * 4])
    env.reset(seed=3), clipped.reset(seed=3)
    for action in 3 * random_actions(5, 1):
        np.testing.assert_array_equal(env.step(action)[0], clipped.step(np.clip(action, -1, 1))[0])


def test_observations_equal_those_of_the_package():
    env = metaworld.make("pick-place-v3", 1, action_repeat=3)
    observations, _ = env.reset(seed=7)
    own = env._arms[0].env
    for action in random_actions(10, 1):
        state = own.data.qpos.copy(), own.data.qvel.copy()
        before = np.zeros(env._arms[0]._remembered.shape)
        env._arms[0]._mujoco.mj_getState(own.model, own.data, before, env._arms[0]._parts)
        observations, *_ = env.step(action)
        after = state_of(env)
        env._arms[0]._mujoco.mj_setState(own.model, own.data, before, env._arms[0]._parts)
        np.testing.assert_array_equal(own.data.qpos, state[0])
        for _ in range(3):
            raw, *_ = own.step(action[0])
        np.testing.assert_array_equal(state_of(env), after)
        np.testing.assert_array_equal(raw[np.r_[:18, 36:39]], env._raw[0][np.r_[:18, 36:39]])
        hand, puck, goal = observations[0, :3], observations[0, 4:7], observations[0, 11:]
        np.testing.assert_allclose(hand * 0.15 + [0, 0.7, 0.15], raw[:3], atol=1e-6)
        np.testing.assert_allclose(puck * 0.15 + [0, 0.7, 0.15], raw[4:7], atol=1e-6)
        np.testing.assert_allclose(goal * 0.15 + [0, 0.7, 0.15], own._target_pos, atol=1e-6)


def state_of(env):
    arm = env._arms[0]
    arm.remember()
    return arm._remembered.copy()


# In these tasks the package leaves bodies where the previous episode moved them.
@pytest.mark.parametrize("task", ("pick-place-v3", "window-open-v3", "handle-press-v3"))
def test_a_state_is_a_function_of_the_last_seed_and_the_actions_since(task):
    seeds = base.environment_seeds(1, 2)
    new, used = metaworld.make(task, 2, horizon=6), metaworld.make(task, 2, horizon=6)
    used.reset(seed=99)
    for action in random_actions(9, 2, seed=5):
        used.step(action)
    first, again = new.reset(seed=seeds)[0], used.reset(seed=seeds)[0]
    np.testing.assert_array_equal(first, again)
    for action in random_actions(20, 2):
        for one, other in zip(new.step(action), used.step(action), strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not np.array_equal(first[0], first[1])


def test_each_episode_has_a_new_goal_and_a_new_position_of_the_object():
    env = metaworld.make("pick-place-v3", 1, horizon=1)
    first = [env.reset(seed=0)[0][0]]
    for step in range(16):
        observations, *_, info = env.step(np.zeros((1, 4), np.float32))
        assert info["episode_start"][0] == (step % 2 == 1)
        if info["episode_start"][0]:
            first.append(observations[0])
    assert len({tuple(each[11:]) for each in first}) == len({tuple(each[4:6]) for each in first}) == 9


def test_a_mask_resets_only_the_environments_that_it_selects():
    seeds = base.environment_seeds(2, 3)
    env, undisturbed = metaworld.make("push-v3", 3), metaworld.make("push-v3", 3)
    start, _ = env.reset(seed=seeds)
    undisturbed.reset(seed=seeds)
    before = random_actions(4, 3)
    for action in before:
        env.step(action), undisturbed.step(action)
    observations, info = env.reset(seed=seeds, options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(info["episode_start"], [False, True, False])
    np.testing.assert_array_equal(observations[1], start[1])
    for action in before:
        mine, theirs = env.step(action)[0], undisturbed.step(action)[0]
        np.testing.assert_array_equal(mine[[0, 2]], theirs[[0, 2]])
        assert not np.array_equal(mine[1], theirs[1])


def test_the_horizon_truncates_and_success_at_the_horizon_terminates():
    env = metaworld.make("pick-place-v3", 1, horizon=4)
    env.reset(seed=0)
    _, _, terminated, truncated, starts, _ = play(env, 10)
    assert not terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(truncated), [3, 8])
    np.testing.assert_array_equal(np.flatnonzero(starts), [4, 9])

    env = metaworld.make("reach-v3", 1)
    env.reset(seed=0)
    length = int(np.flatnonzero(play(env, 30)[2])[0]) + 1
    env = metaworld.make("reach-v3", 1, horizon=length)
    env.reset(seed=0)
    _, _, terminated, truncated, _, _ = play(env, length)
    assert terminated[-1] and not truncated.any()


def test_without_noise_a_blind_expert_acts_like_one_that_looks():
    seeing, blind, odd = (metaworld.make("pick-place-v3", 3) for _ in range(3))
    for env in (seeing, blind, odd):
        env.reset(seed=4)
    expected = play(seeing, 30)
    for env, look in (
        (blind, lambda step: np.zeros(3, bool)),
        (odd, lambda step: np.array([step % 2 == 0, step % 5 == 0, True]) if step % 7 else None),
    ):
        for mine, theirs in zip(play(env, 30, look=look), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert expected[2].sum() >= 3  # also across episodes


def test_a_blind_expert_does_not_see_a_disturbance_until_it_looks():
    undisturbed, blind = metaworld.make("pick-place-v3", 1), metaworld.make("pick-place-v3", 1)
    undisturbed.reset(seed=4), blind.reset(seed=4)
    expected = play(undisturbed, 8)[-1]

    def disturb(step, actions):
        chosen.append(actions)
        return np.array([[1, -1, 1, -1]], np.float32) if step == 2 else actions

    chosen: list[np.ndarray] = []
    observations = play(blind, 8, look=lambda step: np.array([step == 6]), disturb=disturb)[0]
    np.testing.assert_array_equal(chosen[:6], expected[:6])
    assert not np.array_equal(chosen[6], expected[6])
    raw = blind._raw.copy()
    repeated = blind.scripted_actions(np.array([False]))
    np.testing.assert_array_equal(repeated, blind.scripted_actions(np.array([False])))
    np.testing.assert_array_equal(raw, blind._raw)
    assert observations.shape == (8, 1, 14)


def test_a_history_is_the_last_observations_with_zeros_before_the_first():
    single, stacked = metaworld.make("reach-v3", 2), metaworld.make("reach-v3", 2, history=3)
    assert (single.frame_stack, stacked.frame_stack) == (0, 3)
    assert stacked.spec.observation.shape == (3, 14)
    frame, stack = single.reset(seed=0)[0], stacked.reset(seed=0)[0]
    np.testing.assert_array_equal(stack, np.stack([0 * frame, 0 * frame, frame], 1))
    for action in random_actions(4, 2):
        frame, previous = single.step(action)[0], stack
        stack = stacked.step(action)[0]
        np.testing.assert_array_equal(stack, np.concatenate([previous[:, 1:], frame[:, None]], 1))


def test_the_evaluation_and_the_facts_have_all_options():
    env = metaworld.make("push-v3", 2, horizon=20, action_repeat=2, history=2)
    other = env.evaluation(1)
    assert (other.num_envs, other.facts(), other.name) == (1, env.facts(), "metaworld/push-v3")
    assert env.facts()["packages"].keys() == {"metaworld", "mujoco"}
    expected = "ends at success or 20 decisions of 0.025 s; 14 numbers, the last 2"
    assert env.describe() == other.describe() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"task": "pick-place"}, "unknown task 'pick-place'; did you mean 'pick-place-v3'? ("),
        ({"num_envs": 0}, "env.num_envs must be at least 1, not 0"),
        ({"horizon": 0}, "env.horizon must be at least 1, not 0"),
        ({"action_repeat": 0}, "env.action_repeat must be at least 1, not 0"),
        ({"history": 0}, "env.history must be at least 1, not 0"),
        ({"image_size": 500}, "env.image_size must be 0 (no images) to 480 pixels, not 500"),
    ),
)
def test_a_mistake_is_one_clear_line(arguments, message):
    with pytest.raises(UserError) as error:
        metaworld.make(**{"task": "reach-v3", "num_envs": 1, **arguments})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.partition(".")[0] == "metaworld":
            raise ModuleNotFoundError("No module named 'metaworld'", name="metaworld")
        return real(name, *arguments)

    metaworld._package.cache_clear()
    for module in [module for module in sys.modules if module.partition(".")[0] == "metaworld"]:
        monkeypatch.delitem(sys.modules, module)
    with monkeypatch.context() as context:
        context.setattr(builtins, "__import__", without)
        with pytest.raises(UserError) as error:
            metaworld.make("reach-v3", 1)
    assert str(error.value).startswith('env=metaworld needs metaworld: pip install "rlcls[robotics]"')


@pytest.fixture
def opengl():
    """Skips the test on a machine that cannot draw."""
    try:
        metaworld.make("reach-v3", 1, image_size=8).close()
    except UserError as error:
        pytest.skip(str(error))


def test_images_show_the_moving_arm_and_the_goal(opengl):
    env, numbers = metaworld.make("push-v3", 2, image_size=84), metaworld.make("push-v3", 2)
    assert (env.spec.observation.shape, env.spec.observation.dtype) == ((3, 84, 84), np.uint8)
    first, _ = env.reset(seed=0)
    numbers.reset(seed=0)
    for action in random_actions(3, 2):
        pictures, *rest = env.step(action)
        for mine, theirs in zip(rest, numbers.step(action)[1:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    red, green, blue = first.astype(int).transpose(1, 0, 2, 3)
    assert ((green > red + 60) & (green > blue + 60)).any((1, 2)).all()  # the goal's marker
    assert (np.abs(pictures.astype(int) - first).mean((1, 2, 3)) > 1).all()
    env.close()


def test_a_film_repeats_recorded_episodes(opengl, tmp_path):
    env, seeds = metaworld.make("reach-v3", 2), np.array([5, 6])
    env.reset(seed=seeds)
    *_, terminated, _, _, actions = play(env, 20)
    lengths = [int(np.flatnonzero(terminated[:, i])[0]) + 1 for i in range(2)]
    episode = list(actions[: lengths[1], 1])
    assert film(tmp_path / "film.mp4", env, seed=seeds[1:], actions=episode) == 1
    facts = imageio.immeta(tmp_path / "film.mp4")
    assert facts["size"] == (720, 720)
    assert facts["fps"] == 16  # decisions per second
    count, _ = imageio_ffmpeg.count_frames_and_secs(tmp_path / "film.mp4")
    assert count == lengths[1] + 1


def test_opengl_that_cannot_draw_is_one_line(monkeypatch):
    def refuse():
        raise RuntimeError("no display\nat all")

    monkeypatch.setattr(metaworld, "_draw_without_window", refuse)
    with pytest.raises(UserError) as error:
        metaworld.make("reach-v3", 1, image_size=84)
    assert str(error.value) == ("images need OpenGL: apt-get install libegl1 libgl1-mesa-dri (no display)")
