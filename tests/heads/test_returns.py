"""RECAP's value function: returns of successful and failed episodes, and the bins for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcls import heads


@given(
    success=st.booleans(),
    length=st.integers(1, 40),
    failure_cost=st.floats(0, 1000),
    longer=st.integers(0, 1000),
)
def test_a_return_is_the_sum_of_the_rewards_that_follow(success, length, failure_cost, longer):
    rewards = np.full(length, -1.0)
    rewards[-1] = 0 if success else -failure_cost
    sums = np.cumsum(rewards[::-1])[::-1]
    returns = heads.recap_returns(
        success, length, np.arange(length), failure_cost=failure_cost, max_length=length + longer
    )
    assert returns.dtype == np.float32
    np.testing.assert_allclose(returns, np.maximum(-1, sums / (length + longer)), rtol=1e-6, atol=1e-7)
    assert not success or (returns[-1] == 0 and not np.signbit(returns[-1]))


def test_a_failure_that_costs_the_longest_episode_is_worth_minus_one_throughout():
    returns = heads.recap_returns(False, 7, np.arange(7), failure_cost=9, max_length=9)
    np.testing.assert_array_equal(returns, np.full(7, -1, np.float32))


def test_no_return_is_limited_if_the_cost_of_failure_is_added_to_the_longest_episode():
    returns = heads.recap_returns(False, 10, np.arange(10), failure_cost=10, max_length=10 + 10)
    np.testing.assert_allclose(returns, -np.arange(19, 9, -1) / 20)


def test_steps_of_several_tasks_are_normalised_each_by_its_own_longest_episode():
    success, length, longest = np.array([True, False, True]), np.array([5, 5, 50]), np.array([10, 10, 100])
    step = np.array([[0], [4]])
    returns = heads.recap_returns(success, length, step, failure_cost=longest, max_length=longest)
    np.testing.assert_allclose(returns, [[-0.4, -1, -0.49], [0, -1, -0.45]], rtol=1e-6)


@pytest.mark.parametrize("name", ["one_hot", "two_hot", "hlgauss"])
def test_recap_has_201_bins_that_decode_every_return(name):
    head = heads.recap(name)
    assert (head.name, head.num_outputs) == (name, 201)
    assert heads.make(**head.to_dict()) == head
    returns = np.linspace(-1, 0, 4001)
    nearest = 0.0025 if name == "one_hot" else 0.0041 * head.support.width  # the published bias at 3 sigma
    np.testing.assert_allclose(head.decode(head.encode(returns)), returns, atol=nearest + 1e-12)
    assert head.clip_fraction(returns) == 0


def test_the_bins_of_recap_are_centered_at_multiples_of_a_two_hundredth():
    for name in ("one_hot", "two_hot"):
        np.testing.assert_allclose(heads.recap(name).support.centers, np.linspace(-1, 0, 201), atol=1e-15)
    assert heads.recap().encode(np.array([-1.0, -0.0025001, 0.0])).argmax(-1).tolist() == [0, 199, 200]
    support = heads.recap("hlgauss").support
    np.testing.assert_allclose([support.low_edge, support.high_edge], [-1.0115, 0.0115], atol=5e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"success": 1}, TypeError, "recap_returns: success must be boolean, not int64"),
        ({"step": 0.5}, TypeError, "recap_returns: step must be an integer, not float64"),
        ({"length": 0}, ValueError, "recap_returns: length must be at least 1"),
        ({"step": 5}, ValueError, "recap_returns: step must be at least 0 and below length"),
        ({"step": -1}, ValueError, "recap_returns: step must be at least 0 and below length"),
        ({"max_length": 4}, ValueError, "recap_returns: max_length must be at least length"),
        ({"failure_cost": -1}, ValueError, "recap_returns: failure_cost must be finite and not negative"),
        (
            {"failure_cost": np.nan},
            ValueError,
            "recap_returns: failure_cost must be finite and not negative",
        ),
    ],
)
@pytest.mark.untyped
def test_impossible_episodes_are_refused_in_one_line(changes, error, message):
    arguments = {"success": True, "length": 5, "step": 0, "failure_cost": 5, "max_length": 5} | changes
    with pytest.raises(error) as raised:
        heads.recap_returns(**arguments)
    assert str(raised.value) == message


def test_recap_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="recap: name must be one of one_hot, two_hot, hlgauss, not hlgaus"):
        heads.recap("hlgaus")
