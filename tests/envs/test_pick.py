"""Pick and relay against slow, obvious simulations, and what their experts and copies of them reach."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls._errors import UserError
from rlcls.agents.action_bins import ActionBins
from rlcls.envs import pick
from rlcls.envs.jax_vector import JaxVectorEnv


def simulated_pick(state, action, horizon):
    """One step in plain numpy: (gripper, block, closed, held, reward, terminated, truncated)."""
    gripper = np.clip(state.gripper + 0.08 * np.clip(action[:3], -1, 1), 0, 1)
    block, closed, held = np.array(state.block), action[3] > 0, False
    if (closed and state.held) or (closed and not state.closed and np.linalg.norm(gripper - block) < 0.05):
        held = True
    broken = False
    if held:
        block = gripper
    elif state.held:
        broken = block[2] > 0.15
        block[2] = 0.0
    success = held and np.linalg.norm(block - state.goal) < 0.08
    late = not (success or broken) and state.time + 1 >= horizon
    return gripper, block, closed, held, float(success), success or broken, late


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), noise=st.floats(0, 0.6))
def test_pick_is_its_plain_simulation(seed, noise):
    env, random = pick.Pick(horizon=25), np.random.default_rng(seed)
    step, expert = jax.jit(env.step), jax.jit(env.expert)
    state, _ = env.reset(jax.random.key(seed))
    for _ in range(25):
        action = np.array(expert(state))
        if random.random() < noise:
            action = random.uniform(-1, 1, 4).astype(np.float32)
        new, observation, reward, terminated, truncated = step(state, action, jax.random.key(0))
        gripper, block, closed, held, *expected = simulated_pick(state, action, 25)
        np.testing.assert_allclose(new.gripper, gripper, atol=1e-6)
        np.testing.assert_allclose(new.block, block, atol=1e-6)
        assert (bool(new.closed), bool(new.held)) == (closed, held)
        assert [float(reward), bool(terminated), bool(truncated)] == expected
        parts = [new.gripper, new.block, new.goal, [float(closed), float(held)]]
        np.testing.assert_allclose(observation, 3 * (np.concatenate(parts) - 0.5), atol=1e-5)
        state = new
        if terminated or truncated:
            break


def episodes(env, act, seed=0):
    """The returns of the first episode of every environment."""
    observations, _ = env.reset(seed=seed)
    total, over = np.zeros(env.num_envs), np.zeros(env.num_envs, bool)
    step = 0
    while not over.all():
        observations, rewards, terminated, truncated, _ = env.step(act(observations, step))
        total += np.where(over, 0, rewards)
        over |= terminated | truncated
        step += 1
    return total


def test_the_expert_always_picks_and_random_actions_never_do():
    env, random = pick.make("pick", num_envs=400), np.random.default_rng(0)
    assert episodes(env, lambda *_: env.scripted_actions()).mean() == 1
    assert episodes(env, lambda *_: random.uniform(-1, 1, (400, 4)).astype(np.float32)).mean() < 0.02


def test_careful_legs_decide_the_relay_and_no_demonstrator_has_more_than_one():
    """What is reachable: p**2 for the demonstrations, p**3 for the most frequent action, 1 for the best recorded one.

    p is the probability of a leg at full speed without a loss.
    """
    env = pick.make("relay", num_envs=3000)

    def at_speed(speed):
        def act(observations, step):
            state = env.state
            way = state.goals[np.arange(3000), state.leg] - state.gripper
            return (speed * np.clip(way / (speed * 0.08), -1, 1)).astype(np.float32)

        return episodes(env, act).mean()

    demonstrations = episodes(env, lambda *_: env.scripted_actions()).mean()
    fast, slow = at_speed(1.0), at_speed(0.5)
    assert slow == 1.0
    assert abs(fast - demonstrations**1.5) < 0.03 and fast < demonstrations - 0.08
    env.reset(seed=1)
    legs = env.state.careful_leg
    np.testing.assert_allclose(np.bincount(legs) / 3000, 1 / 3, atol=0.03)


@pytest.mark.parametrize("bins", [5, 7, 11, 15, 21, 256])
def test_a_careful_motion_stays_careful_as_a_centre_of_bins(bins):
    careful = np.array([[0.5, -0.5, 0.1]], np.float32)
    cut = ActionBins((-1.0,) * 3, (1.0,) * 3, bins)
    played = np.asarray(cut.decode(cut.encode(careful)))
    fast = np.asarray(cut.decode(cut.encode(np.ones((1, 3), np.float32))))
    assert np.abs(played).max() < 0.6 < fast.min()


def test_what_is_hidden_is_the_same_in_every_state():
    env = pick.make("pick", num_envs=50, hidden=True)
    observations, _ = env.reset(seed=0)
    for _ in range(12):
        observations, *_ = env.step(env.scripted_actions())
        assert (observations[:, 9:] == 0).all()
    assert env.state.held.any()


def test_a_history_is_the_last_observations_with_zeros_before_the_first():
    plain, stacked = (pick.make("pick", num_envs=5, history=h, horizon=7) for h in (1, 3))
    observation, _ = plain.reset(seed=3)
    stack, _ = stacked.reset(seed=3)
    past = np.zeros((5, 3, 11), np.float32)
    past[:, -1] = observation
    np.testing.assert_array_equal(stack, past)
    for _ in range(20):
        actions = plain.scripted_actions()
        observation, *_, info = plain.step(actions)
        stack, *_ = stacked.step(actions)
        past = np.concatenate([past[:, 1:], observation[:, None]], axis=1)
        past[info["episode_start"], :-1] = 0
        np.testing.assert_array_equal(stack, past)


def test_an_expert_that_does_not_look_plays_what_it_would_have_played_undisturbed():
    env, undisturbed = (pick.make("pick", num_envs=20) for _ in range(2))
    random, blinded = np.random.default_rng(0), np.zeros(20, bool)
    env.reset(seed=2)
    undisturbed.reset(seed=2)
    for _ in range(10):
        blind = env.scripted_actions(blinded)  # at the first state of an episode it looks in any case
        np.testing.assert_array_equal(env.scripted_actions(blinded), blind)  # asked again before the step
        np.testing.assert_array_equal(blind, undisturbed.scripted_actions())
        env.step(random.uniform(-1, 1, (20, 4)).astype(np.float32))
        undisturbed.step(blind)
    seeing = env.scripted_actions()
    assert not np.array_equal(seeing, undisturbed.scripted_actions())
    np.testing.assert_array_equal(seeing, jax.vmap(env.env.expert)(env.state))


def test_an_expert_that_assumes_that_it_has_succeeded_repeats_its_last_action():
    env = pick.make("pick", num_envs=1)
    env.reset(seed=2)
    blind, actions = np.zeros(1, bool), []
    for step in range(env.env.horizon):
        actions.append(env.scripted_actions(blind))
        env.step(np.ones((1, 4), np.float32) if step == 0 else actions[-1])  # the first action goes wrong
    undisturbed = pick.make("pick", num_envs=1)
    undisturbed.reset(seed=2)
    length = 0
    while not undisturbed.step(undisturbed.scripted_actions())[2].any():
        length += 1
    assert (np.array(actions[length:]) == actions[length]).all()
    looking = env.scripted_actions()
    np.testing.assert_array_equal(looking, jax.vmap(env.env.expert)(env.state))


def test_an_environment_without_an_expert_or_a_picture_says_that_it_has_none():
    class Bare(pick.Pick):
        expert = property()
        draw = property()

    env = JaxVectorEnv(Bare(), 1, name="bare")
    assert not hasattr(env, "scripted_actions") and not hasattr(env, "render_twin")
    with pytest.raises(RuntimeError, match="recv was called without send"):
        env.recv()


def test_a_picture_shows_the_goal_green_and_the_object_red():
    env = pick.make("relay", num_envs=1).render_twin()
    picture, _ = env.reset(seed=np.array([0]))
    assert picture.shape == (1, 1, 96, 192, 3) and picture.dtype == np.uint8
    for half in (picture[0, 0, :, :95], picture[0, 0, :, 97:]):
        colours = {tuple(colour) for colour in half.reshape(-1, 3).tolist()}
        assert {(0, 160, 0), (200, 0, 0), (255, 255, 255)} <= colours
    later, rewards, *_ = env.step(np.ones((1, 3), np.float32))
    assert (later != picture).any() and rewards.shape == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "pik"}, "unknown task 'pik'; did you mean 'pick'?"),
        ({"horizon": 0}, "horizon must be at least 1, not 0"),
        ({"history": 0}, "env.history must be at least 1, not 0"),
        ({"num_envs": 0}, "env.num_envs must be at least 1, not 0"),
        ({"task": "relay", "hidden": True}, "hidden=true needs task=pick; task=relay has nothing to hide"),
    ],
)
def test_a_mistake_is_one_clear_line(options, message):
    with pytest.raises((UserError, ValueError), match=message):
        pick.make(**{"num_envs": 2, **options})
    with pytest.raises(ValueError, match="slip must be between 0 and 1, not 2"):
        pick.Relay(slip=2)
