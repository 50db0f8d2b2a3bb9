import dataclasses
import inspect
import sys

import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.envs import atari, base

GAMES = ("Pong", "Breakout")
SEEDS = base.environment_seeds((0, 0), 4)  # uint32, half of which exceed a C int


def play(env, steps, seed=0):
    """Plays random actions and yields (observations, rewards, terminated, truncated, info) of each step."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield env.step(rng.integers(env.single_action_space.n, size=env.num_envs))


def trajectory(env, steps, seed=0):
    return [(*step[:4], step[4]["lives"], step[4]["episode_start"]) for step in play(env, steps, seed)]


def assert_equal_trajectories(ones, others):
    for step, (one, other) in enumerate(zip(ones, others, strict=True)):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"at step {step}")


@pytest.mark.parametrize("name", atari.PROTOCOLS)
def test_a_protocol_leaves_no_argument_of_the_emulator_to_its_default(name):
    from ale_py.vector_env import AtariVectorEnv

    execution = {"game", "num_envs", "batch_size", "num_threads", "thread_affinity_offset", "autoreset_mode"}
    arguments = set(inspect.signature(AtariVectorEnv).parameters)
    assert set(atari.PROTOCOLS[name].emulator_arguments()) == arguments - execution


def test_with_the_full_action_space_all_games_have_18_actions():
    for game, own in (("Pong", 6), ("Breakout", 4)):
        assert atari.make(game, 1).spec.num_actions == own
        env = atari.make(game, 1, full_action_space=True)
        assert env.spec.num_actions == env.evaluation(1).spec.num_actions == 18
        assert "all 18 actions" in env.describe()


def test_the_protocols_have_the_published_values():
    dopamine, nature, atari100k = (atari.PROTOCOLS[name] for name in ("dopamine", "nature", "atari100k"))
    assert dopamine.repeat_action_probability == 0.25
    assert (dopamine.noop_max, dopamine.use_fire_reset, dopamine.life_loss_info) == (0, False, False)
    for protocol in (nature, atari100k):
        assert protocol.repeat_action_probability == 0
        assert (protocol.noop_max, protocol.life_loss_info) == (30, True)
    assert [protocol.evaluation_epsilon for protocol in (dopamine, nature, atari100k)] == [0.001, 0.05, 0.001]
    for protocol in atari.PROTOCOLS.values():
        assert protocol.max_num_frames_per_episode == 108_000
        assert not (protocol.reward_clipping or protocol.episodic_life)
        assert not protocol.evaluation().life_loss_info
        assert "\n" not in protocol.describe()


@pytest.mark.parametrize("name", atari.PROTOCOLS)
@pytest.mark.parametrize("game", GAMES)
def test_single_frames_and_zeros_before_the_first_rebuild_the_stack_of_every_protocol(game, name):
    env = atari.make(game, 4, name)
    observations, info = env.reset(seed=SEEDS)
    assert info["episode_start"].all() and observations.dtype == np.uint8
    stack = np.zeros_like(observations)
    stack[:, -1] = observations[:, -1]
    np.testing.assert_array_equal(observations, stack)
    over, starts = np.zeros(4, bool), 0
    for observations, rewards, terminated, truncated, info in play(env, 1300):
        start = info["episode_start"]
        np.testing.assert_array_equal(start, over)
        assert not rewards[start].any() and not (terminated | truncated)[start].any()
        stack[start] = 0
        stack = np.concatenate([stack[:, 1:], observations[:, -1:]], axis=1)
        np.testing.assert_array_equal(observations, stack)
        over = truncated | (terminated & (info["lives"] == 0))  # a lost life does not end the game
        starts += start.sum()
    assert starts >= 3
    env.close()


def test_a_lost_life_is_terminal_and_the_game_continues():
    env = atari.make("Breakout", 4, "nature")
    _, info = env.reset(seed=SEEDS)
    lives, lost = info["lives"], 0
    for _, _, terminated, _, info in play(env, 400):
        start = info["episode_start"]
        np.testing.assert_array_equal(terminated[~start], (info["lives"] < lives)[~start])
        lost += (terminated & (info["lives"] > 0)).sum()
        lives = info["lives"]
    assert lost > 20
    env.close()


def test_a_lost_life_has_no_effect_under_dopamine_and_in_evaluations():
    for protocol in (atari.PROTOCOLS["dopamine"], atari.PROTOCOLS["nature"].evaluation()):
        env = atari.Atari("Breakout", 4, protocol)
        env.reset(seed=SEEDS)
        ends = [info["lives"][terminated] for _, _, terminated, _, info in play(env, 300)]
        assert len(np.concatenate(ends)) > 0 and not np.concatenate(ends).any()
        env.close()


@pytest.mark.parametrize("limit", (4, 8, 40))
def test_the_frame_limit_truncates_and_the_next_step_starts_an_episode(limit):
    # If the limit is below the number of no-ops, the frame counter of an episode can increase across a reset.
    protocol = dataclasses.replace(atari.PROTOCOLS["nature"], max_num_frames_per_episode=limit)
    env = atari.Atari("Pong", 4, protocol)
    env.reset(seed=SEEDS)
    length = limit // 4
    for step, (_, _, terminated, truncated, info) in enumerate(play(env, 10 * (length + 1)), start=1):
        assert not terminated.any()
        assert (truncated == (step % (length + 1) == length)).all()
        assert (info["episode_start"] == (step % (length + 1) == 0)).all()
    env.close()


def test_no_op_starts_differ_and_stay_below_the_maximum():
    env = atari.make("Pong", 4, "atari100k")
    env.reset(seed=0)
    # A reset without seeds continues the random streams; it is quick because it does not load the ROM again.
    frames = np.concatenate([env.reset()[1]["episode_frame_number"] for _ in range(50)])
    assert frames.min() >= 0 and frames.max() == 29 and len(np.unique(frames)) == 30
    env.close()


@pytest.mark.parametrize("name", atari.PROTOCOLS)
@pytest.mark.parametrize("game", GAMES)
def test_a_reset_with_seeds_equals_a_new_environment_bit_for_bit(game, name):
    used, fresh = atari.make(game, 2, name), atari.make(game, 2, name)
    used.reset(seed=1)
    for _ in play(used, 250, seed=1):
        pass
    first, second = used.reset(seed=SEEDS[:2]), fresh.reset(seed=SEEDS[:2])
    np.testing.assert_array_equal(first[0], second[0])
    assert_equal_trajectories(trajectory(used, 300), trajectory(fresh, 300))
    used.close()
    fresh.close()


@pytest.mark.parametrize("game", GAMES)
def test_one_thread_and_two_give_the_same_trajectories(game):
    one, two = (atari.make(game, 3, "dopamine", num_threads=threads) for threads in (1, 2))
    one.reset(seed=3)
    two.reset(seed=3)
    assert_equal_trajectories(trajectory(one, 300), trajectory(two, 300))
    one.close()
    two.close()


def test_neighbouring_seeds_share_no_environment():
    env = atari.make("Pong", 2, "dopamine")
    screens = []
    for seed in (0, 1):
        env.reset(seed=seed)
        observations = [step[0] for step in play(env, 100)]
        screens += [np.stack([observation[row] for observation in observations]) for row in range(2)]
    for i in range(4):
        for j in range(i):
            assert (screens[i] != screens[j]).any()
    env.close()


def test_rewards_are_raw():
    env = atari.make("MsPacman", 2, "dopamine")
    env.reset(seed=0)
    rewards = np.concatenate([step[1] for step in play(env, 100)])
    assert rewards.dtype == np.float32 and rewards.max() >= 10
    env.close()


def test_send_and_recv_equal_step():
    one, other = atari.make("Pong", 2), atari.make("Pong", 2)
    one.reset(seed=0)
    other.reset(seed=0)
    actions = np.array([2, 3], np.int32)
    for _ in range(20):
        one.send(actions)
        np.testing.assert_array_equal(one.recv()[0], other.step(actions)[0])
    one.send(actions)
    with pytest.raises(RuntimeError, match="twice"):
        one.send(actions)
    # A reset waits for the step that `send` began, and drops it.
    np.testing.assert_array_equal(one.reset(seed=5)[0], other.reset(seed=5)[0])
    one.close()
    other.close()


@pytest.mark.parametrize("name", atari.PROTOCOLS)
def test_the_twin_in_colour_plays_the_same_episodes(name):
    grey = atari.make("Breakout", 2, name)
    colour = atari.rgb_twin("Breakout", grey.protocol, num_envs=2)
    grey.reset(seed=0)
    screen, _ = colour.reset(seed=0)
    assert screen.shape == (2, 1, 210, 160, 3) and len(np.unique(screen)) > 3
    for one, other in zip(play(grey, 400), play(colour, 400), strict=True):
        for a, b in zip(one[1:4], other[1:4], strict=True):
            np.testing.assert_array_equal(a, b)
        for key in ("lives", "frame_number", "episode_start"):
            np.testing.assert_array_equal(one[4][key], other[4][key])
    grey.close()
    colour.close()


def test_the_twin_of_a_taller_console_keeps_its_height():
    twin = atari.rgb_twin("AirRaid", atari.PROTOCOLS["dopamine"])
    assert twin.single_observation_space.shape == (1, 250, 160, 3)
    twin.close()


def test_every_game_of_the_atari_57_has_its_rom():
    names = atari.games()
    assert {"Pong", "Breakout", "MsPacman", "UpNDown", "YarsRevenge", "Jamesbond"} <= set(names)
    assert len(names) >= 100 and names == sorted(names)


def test_games_for_two_players_are_not_listed():
    assert not {"Combat", "Joust", "MazeCraze", "Warlords"} & set(atari.games())


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"game": "Pnog"}, "unknown game 'Pnog'; did you mean 'Pong'?"),
        ({"game": "mspacman"}, "unknown game 'mspacman'; did you mean 'MsPacman'?"),
        ({"game": "PongNoFrameskip-v4"}, "unknown game 'PongNoFrameskip-v4'; did you mean 'Pong'?"),
        ({"game": "ALE/MsPacman-v5"}, "unknown game 'ALE/MsPacman-v5'; did you mean 'MsPacman'?"),
        (
            {"game": "Seaquest-ramDeterministic-v4"},
            "unknown game 'Seaquest-ramDeterministic-v4'; did you mean 'Seaquest'?",
        ),
        ({"game": "Combat"}, "game 'Combat' needs two players; python -m rlcls.games"),
        ({"game": "zzz"}, "unknown game 'zzz'"),
        ({"protocol": "dopamin"}, "unknown protocol 'dopamin'; did you mean 'dopamine'?"),
        ({"num_envs": 0}, "env.num_envs must be at least 1, not 0"),
        ({"num_threads": -1}, "env.num_threads must be 0 (all cores but one) or more, not -1"),
    ),
)
def test_a_mistake_is_one_clear_line(arguments, message):
    with pytest.raises(UserError) as error:
        atari.make(**{"game": "Pong", "num_envs": 1, **arguments})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_missing_emulator_is_one_clear_line(monkeypatch):
    atari._roms.cache_clear()
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UserError, match=r'^Atari needs ale-py.*pip install "rlcls\[atari\]"'):
        atari.make("Pong", 1)
