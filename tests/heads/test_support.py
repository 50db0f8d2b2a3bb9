"""Where the bins of a support lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcls import heads


def test_on_edges_the_bins_fill_the_range():
    support = heads.Support.uniform(-10, 10, 51)
    np.testing.assert_allclose(support.edges, np.linspace(-10, 10, 52))
    np.testing.assert_allclose(support.centers, (support.edges[1:] + support.edges[:-1]) / 2, atol=1e-15)
    assert support.width == 20 / 51


def test_on_centers_the_outermost_centers_are_the_ends():
    support = heads.Support.uniform(-10, 10, 51, on="centers")
    np.testing.assert_allclose(support.centers, np.linspace(-10, 10, 51), atol=1e-14)
    np.testing.assert_allclose(support.edges, np.linspace(-10.2, 10.2, 52))
    assert (support.low_edge, support.high_edge) == (-10.2, 10.2)


@given(limit=st.floats(1e-6, 1e6), num_bins=st.integers(2, 400), on=st.sampled_from(["edges", "centers"]))
def test_a_symmetric_range_has_mirrored_bins_to_the_last_bit(limit, num_bins, on):
    support = heads.Support.uniform(-limit, limit, num_bins, on=on)
    np.testing.assert_array_equal(support.centers, -support.centers[::-1])
    np.testing.assert_array_equal(support.edges, -support.edges[::-1])


def test_supports_are_values():
    support = heads.Support.uniform(-1, 1, 3, on="centers")
    assert support == heads.Support(-1.0, 1.0, 3, "centers")
    assert hash(support) == hash(heads.Support(-1.0, 1.0, 3, "centers"))
    assert support != heads.Support(-1.0, 1.0, 3, "edges")
    assert support.centers.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        support.centers[0] = 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((10, -10, 51), ValueError, r"support: vmin \(10.0\) must be below vmax \(-10.0\)"),
        ((1, 1, 51), ValueError, r"support: vmin \(1.0\) must be below vmax \(1.0\)"),
        ((-10, 10, 1), ValueError, "support: num_bins must be at least 2, not 1"),
        ((-10, 10, 51.5), TypeError, "support: num_bins must be an integer, not 51.5"),
        ((-10, 10, "51"), TypeError, "support: num_bins must be an integer, not '51'"),
        ((float("nan"), 10, 51), ValueError, "support: vmin must be finite, not nan"),
        ((-10, None, 51), TypeError, "support: vmax must be a number, not None"),
        ((-10, 10, 51, "middles"), ValueError, "support: on must be 'edges' or 'centers', not 'middles'"),
    ],
)
@pytest.mark.untyped
def test_impossible_supports_are_refused_in_one_line(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        heads.Support(*arguments)
    assert "\n" not in str(raised.value)
