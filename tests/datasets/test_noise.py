"""The actions of noisy experts."""

import numpy as np
import pytest

from rlcls.datasets.noise import NOISES, NoisyExpert


class Counting:
    """Environments whose expert's action is the number of steps since its last look."""

    def __init__(self, num_envs):
        self.since = np.zeros(num_envs)

    def scripted_actions(self, look):
        self.since = np.where(look, 0, self.since + 1)
        return self.since[:, None].astype(np.float32)


def generator(part, step, stream):
    return np.random.default_rng([part, step, stream])


def played(noise, levels, *, num_envs=200, length=20, episodes=3):
    """The actions [steps, N] of episodes with this length."""
    random_actions = np.full((num_envs, 1), -1.0, np.float32)
    expert = Counting(num_envs).scripted_actions
    policy = NoisyExpert(expert, noise, levels, lambda random: random_actions, generator)
    starts = [np.full(num_envs, step % length == 0) for step in range(episodes * length)]
    return np.array([policy(None, start, 0, step)[:, 0] for step, start in enumerate(starts)])


def test_an_expert_looks_at_the_period_of_its_noise():
    assert (played("closed_loop", [0.0]) == 0).all()
    replayed = played("replay", [0.0])
    np.testing.assert_array_equal(replayed, np.tile(np.arange(20), 3)[:, None] * np.ones((1, 200)))
    mixed = played("mixed", [0.0]).reshape(3, 20, 200)
    periods = mixed.max(axis=1) + 1
    values, counts = np.unique(periods, return_counts=True)
    np.testing.assert_array_equal(values, [1, 4, 8, 20])
    assert (counts > 100).all()  # 600 episodes, four equally likely periods
    assert (periods[0] != periods[1]).any()


def test_each_episode_keeps_its_own_level():
    shares = (played("closed_loop", [0.0, 1.0]) == -1).reshape(3, 20, 200).mean(axis=1)
    assert set(np.unique(shares)) == {0.0, 1.0} and 0.35 < shares.mean() < 0.65
    shares = (played("closed_loop", [0.3]) == -1).mean()
    assert abs(shares - 0.3) < 0.02


@pytest.mark.parametrize("noise", NOISES)
def test_the_same_moments_give_the_same_actions(noise):
    np.testing.assert_array_equal(played(noise, [0.1, 0.4]), played(noise, [0.1, 0.4]))


@pytest.mark.untyped
def test_a_mistake_is_one_clear_line():
    for arguments, message in (
        (("loud", [0.1]), "noise must be one of closed_loop, mixed, replay, not loud"),
        (("mixed", []), r"levels must be probabilities, not \[\]"),
        (("mixed", [1.5]), r"levels must be probabilities, not \[1.5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            NoisyExpert(None, *arguments, None, generator)
