import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls.replay import Priorities


@settings(deadline=None, max_examples=50)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-12, 0.3, 1.0, 7.0, 1e6]), min_size=1, max_size=300),
    seed=st.integers(0, 2**32 - 1),
)
def test_draws_equal_a_search_in_the_cumulative_weights(weights, seed):
    weights = np.asarray(weights)
    table = Priorities(len(weights))
    table.assign_all(weights)
    if not weights.any():
        with pytest.raises(ValueError, match="no slot has a positive weight"):
            table.draw(np.zeros(1))
        return
    uniforms = np.random.default_rng(seed).random(200)
    drawn = table.draw(uniforms)
    assert (weights[drawn] > 0).all()
    # Block sums round differently from one long sum, so points near a boundary are not compared.
    cumulated = np.cumsum(weights)
    points = uniforms * cumulated[-1]
    clear = np.abs(cumulated[None] - points[:, None]).min(1) > 1e-9 * cumulated[-1]
    np.testing.assert_array_equal(drawn[clear], np.searchsorted(cumulated, points, side="right")[clear])


def test_draws_follow_the_weights():
    table = Priorities(1000)
    weights = np.random.default_rng(0).exponential(size=1000)
    table.assign_all(weights)
    counts = np.bincount(table.draw(np.random.default_rng(1).random(200_000)), minlength=1000)
    expected = 200_000 * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 1000 + 5 * np.sqrt(2 * 1000)  # chi-squared


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 99), st.floats(0, 10)), min_size=1, max_size=200))
def test_draws_do_not_depend_on_the_order_of_writes(writes):
    one_by_one, at_once = Priorities(100), Priorities(100)
    for slot, weight in writes:
        one_by_one.assign(np.array([slot]), weight)
    at_once.assign_all(one_by_one.weights.copy())
    assert one_by_one.total == at_once.total
    if one_by_one.total > 0:
        uniforms = np.linspace(0, 1, 64, endpoint=False)
        np.testing.assert_array_equal(one_by_one.draw(uniforms), at_once.draw(uniforms))


def test_a_point_just_below_one_draws_a_slot_of_positive_weight():
    table = Priorities(100)
    table.assign(np.array([3, 40]), np.array([1e-300, 0.1]))
    assert table.draw(np.array([np.nextafter(1, 0)]))[0] == 40
    assert table.draw(np.array([0.0]))[0] in (3, 40)


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf, -1.0])
def test_a_negative_or_nonfinite_weight_is_refused_and_changes_nothing(weight):
    table = Priorities(4)
    table.assign_all(np.arange(4.0))
    with pytest.raises(ValueError, match="priorities must be finite and at least 0"):
        table.assign(np.array([0, 1]), np.array([1.0, weight]))
    with pytest.raises(ValueError, match="priorities must be finite and at least 0"):
        table.assign_all(np.full(4, weight))
    assert table.weights.tolist() == [0, 1, 2, 3]
