"""A wrapper that adds the number of the game to observations."""

import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.envs import gymnax, probe
from rlcls.envs.one_of_many import OneOfMany
from rlcls.envs.wrappers import as_host_env


def test_observations_are_unchanged_and_have_the_number_of_the_game():
    env, plain = as_host_env(OneOfMany(probe.make("probe/policy", 3), 7)), probe.make("probe/policy", 3)
    for numbered, alone in ((env, plain), (env.evaluation(2), plain.evaluation(2))):
        observations, _ = numbered.reset(seed=5)
        np.testing.assert_array_equal(observations["frames"], alone.reset(seed=5)[0])
        np.testing.assert_array_equal(observations["game"], np.full(numbered.num_envs, 7))
        actions = np.ones(numbered.num_envs, np.int64)
        step, other = numbered.step(actions), alone.step(actions)
        np.testing.assert_array_equal(step[0]["frames"], other[0])
        np.testing.assert_array_equal(step[1], other[1])
    assert (
        env.spec.observation["game"].dtype == np.int32
        and env.spec.observation["frames"] == plain.spec.observation
    )


@pytest.mark.untyped
def test_unsuitable_arguments_are_refused_in_one_line():
    for number in (-1, 0.5, "Pong"):
        with pytest.raises(UserError, match=f"^env.number must be an integer of at least 0, not {number}$"):
            OneOfMany(probe.make("probe/policy", 1), number)
    with pytest.raises(UserError, match="^env.number needs a gymnasium vector environment, not object$"):
        OneOfMany(object(), 0)


def test_boolean_observations_keep_their_type():
    pytest.importorskip("gymnax")
    env = as_host_env(OneOfMany(gymnax.minatar("Breakout", 2), 0))
    assert env.spec.observation["frames"].dtype == bool
    assert env.reset(seed=1)[0]["frames"].dtype == bool
