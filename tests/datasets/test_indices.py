"""The indices of a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls.datasets.indices import Indices
from rlcls.datasets.permutation import permute


@settings(max_examples=50)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**40))
def test_the_permutation_is_a_bijection_for_any_n(n, seed, epoch):
    assert sorted(permute(np.arange(n), n, (seed, epoch))) == list(range(n))


def test_permutations_of_different_epochs_are_different():
    orders = {tuple(permute(np.arange(50), 50, (0, epoch))) for epoch in range(20)}
    assert len(orders) == 20


def test_every_position_of_an_epoch_has_every_index_equally_often():
    images = np.stack([permute(np.arange(7), 7, (3, epoch)) for epoch in range(2100)])
    counts = np.stack([np.bincount(column, minlength=7) for column in images.T])
    assert np.abs(counts - 300).max() < 80  # five standard deviations


@settings(max_examples=30)
@given(n=st.integers(1, 100), size=st.integers(1, 30), hosts=st.integers(1, 3), seed=st.integers(0, 9))
def test_each_epoch_holds_each_index_once_and_no_two_hosts_share_one(n, size, hosts, seed):
    drawers = [Indices(n, "epochs", host=host, hosts=hosts) for host in range(hosts)]
    batches = -(-2 * n // (size * hosts))
    drawn = [
        np.stack([drawer.draw(size, seed, number) for drawer in drawers], axis=1).ravel()
        for number in range(batches)
    ]
    for epoch in np.concatenate(drawn)[: 2 * n].reshape(2, n):
        assert sorted(epoch) == list(range(n))


@pytest.mark.parametrize("sampling", ["replacement", "epochs"])
def test_hosts_divide_the_batch_of_one_host(sampling):
    whole = Indices(1000, sampling).draw(12, 5, 7)
    for host in range(3):
        np.testing.assert_array_equal(
            Indices(1000, sampling, host=host, hosts=3).draw(4, 5, 7), whole[host::3]
        )


def test_draws_with_replacement_are_uniform_and_differ_by_seed_and_number():
    indices = Indices(10)
    counts = np.bincount(
        np.concatenate([indices.draw(100, 0, number) for number in range(100)]), minlength=10
    )
    assert np.abs(counts - 1000).max() < 150
    first, again, other_number, other_seed = (
        indices.draw(50, *key) for key in [(0, 0), (0, 0), (0, 1), (1, 0)]
    )
    assert (first == again).all() and (first != other_number).any() and (first != other_seed).any()


@pytest.mark.parametrize("options", [{"sampling": "shuffled"}, {"host": 2, "hosts": 2}, {"host": -1}])
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=r"sampling must be one of|host"):
        Indices(10, **options)
