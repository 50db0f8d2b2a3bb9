"""Where the bins of a support lie."""

import jax
import jax.numpy as jnp
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


def test_equal_supports_are_equal_and_hash_equal():
    support = heads.Support.uniform(-1, 1, 3, on="centers")
    assert support == heads.Support(-1.0, 1.0, 3, "centers")
    assert hash(support) == hash(heads.Support(-1.0, 1.0, 3, "centers"))
    assert support != heads.Support(-1.0, 1.0, 3, "edges")
    points = [0.0, 1.0, 3.0]
    assert hash(heads.Support(0.0, 3.0, 2, points=tuple(points))) == hash(heads.Support.arbitrary(points))
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
        ((-10, 10, 10**9), ValueError, "support: num_bins must be at most 1048576, not 1000000000"),
        ((-10, 10, "51"), TypeError, "support: num_bins must be an integer, not '51'"),
        ((float("nan"), 10, 51), ValueError, "support: vmin must be finite, not nan"),
        ((-10, None, 51), TypeError, "support: vmax must be a number, not None"),
        (([-10.0], 10, 51), TypeError, r"support: vmin must be a number, not \[-10.0\]"),
        ((-10, 10, 51, "middles"), ValueError, "support: on must be one of edges, centers, not middles"),
    ],
)
@pytest.mark.untyped
def test_impossible_supports_are_refused_in_one_line(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        heads.Support(*arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.untyped  # the annotation says float
@pytest.mark.parametrize("make", [np.float32, np.array, jnp.float32])
def test_an_array_without_axes_is_a_number(make):
    support = heads.Support.uniform(make(-10), make(10), 51)
    assert support == heads.Support.uniform(-10, 10, 51) and type(support.vmin) is float


@pytest.mark.untyped
def test_a_traced_number_is_refused():
    with pytest.raises(TypeError, match="support: vmin must be a number"):
        jax.jit(lambda low: heads.Support.uniform(low, 10, 51).vmax)(-10.0)


# Bins of unequal width


def test_symexp_bins_are_those_of_dreamer():
    support = heads.Support.symexp(-20, 20, 255)
    steps = np.linspace(-20, 20, 255)
    np.testing.assert_allclose(
        support.centers, np.sign(steps) * np.expm1(np.abs(steps)), rtol=1e-10, atol=1e-12
    )
    np.testing.assert_array_equal(support.edges, -support.edges[::-1])
    assert ((support.edges[:-1] < support.centers) & (support.centers < support.edges[1:])).all()


def test_arbitrary_bins_have_centers_between_edges_and_edges_between_centers():
    on_edges = heads.Support.arbitrary([0, 1, 3, 7])
    np.testing.assert_array_equal(on_edges.centers, [0.5, 2, 5])
    assert on_edges.num_bins == 3 and not on_edges.is_uniform
    on_centers = heads.Support.arbitrary(np.array([0.0, 1, 3]), on="centers")
    np.testing.assert_array_equal(on_centers.edges, [-0.5, 0.5, 2, 4])
    assert hash(on_centers) == hash(heads.Support.arbitrary([0, 1, 3], on="centers"))


def test_a_scalar_transform_moves_scalars_and_a_bin_transform_moves_bins():
    biased = heads.Support.uniform(-3, 3, 7, scalar_transform="symlog")
    unbiased = heads.Support.uniform(-3, 3, 7, bin_transform="symlog")
    np.testing.assert_array_equal(biased.edges, heads.Support.uniform(-3, 3, 7).edges)
    assert biased.squash(np.float64(np.e - 1)) == pytest.approx(1.0)
    assert unbiased.squash(np.float64(5)) == 5 and unbiased.high_edge == pytest.approx(np.expm1(3))
    np.testing.assert_allclose(biased.values[-1], np.expm1(biased.centers[-1]))


# Wider supports and more bins


@pytest.mark.parametrize("on", ["edges", "centers"])
@pytest.mark.parametrize("ratio", [0.5, 0.75, 2.0])
def test_a_widened_support_has_a_margin_of_three_sigma(on, ratio):
    support = heads.Support.uniform(-10, 6, 51, on=on)
    wide = support.widen(ratio)
    assert wide.num_bins == 51 and wide.on == on
    margin = 3 * ratio * wide.width
    assert wide.low_edge == pytest.approx(-10 - margin) and wide.high_edge == pytest.approx(6 + margin)
    head = heads.HLGauss(wide, sigma_ratio=ratio)
    ends = np.array([-10.0, 6])
    np.testing.assert_allclose(head.decode(head.encode(ends)), ends, atol=0.01 * max(1, ratio) * wide.width)


@pytest.mark.parametrize(
    "support",
    [
        heads.Support.uniform(-10, 10, 51),
        heads.Support.uniform(-10, 10, 51, on="centers", scalar_transform="symlog"),
        heads.Support.symexp(-5, 5, 31),
        heads.Support.arbitrary([-3.0, -1, 0, 2]),
        heads.Support.arbitrary([-3.0, -1, 0, 2], on="centers"),
    ],
    ids=str,
)
def test_an_extended_support_keeps_its_bins(support):
    extended = support.extend(2, 3)
    assert extended.num_bins == support.num_bins + 5
    np.testing.assert_allclose(extended.centers[2:-3], support.centers, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(extended.edges[2:-3], support.edges, rtol=1e-12, atol=1e-13)
    assert support.extend(0, 0) == support


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heads.Support.arbitrary([0, 2, 1]), "points must increase, but 1.0 follows 2.0"),
        (lambda: heads.Support.arbitrary([0.0, 1.0]), "num_bins must be at least 2, not 1"),
        (lambda: heads.Support.arbitrary([0.0, float("nan")]), "points must be finite, not nan"),
        (lambda: heads.Support(0, 2, 3, points=(0.0, 1.0, 2.0)), "points must be num_bins"),
        (lambda: heads.Support.uniform(0, 1, 4).widen(0.75), "num_bins must be above 4.5, not 4"),
        (lambda: heads.Support.arbitrary([0, 1, 3]).widen(), "arbitrary bins have no common width"),
        (
            lambda: heads.Support.uniform(0, 1, 9, scalar_transform="log"),
            "scalar_transform must be one of identity, symlog, signed_hyperbolic, arcsinh, not log",
        ),
        (
            lambda: heads.Support.uniform(-200, 200, 9, scalar_transform="symlog"),
            "vmin (-200.0) and vmax (200.0) stand for -7.22597e+86 and 7.22597e+86, beyond float32: "
            "they are symlog of the scalar",
        ),
        (lambda: heads.Support.symexp(-200, 200, 9), "beyond float32: they are symlog of the scalar"),
        (lambda: heads.Support.uniform(-1e39, 1e39, 9), "stand for -1e+39 and 1e+39, beyond float32"),
        (
            lambda: heads.Support.arbitrary(np.zeros((2, 3))),
            "at least 2 numbers in a row, not of shape (2, 3)",
        ),
        (lambda: heads.Support.arbitrary([1.0]), "at least 2 numbers in a row, not of shape (1,)"),
        (lambda: heads.Support.uniform(0, 1, 9).extend(-1, 0), "low_bins must be at least 0, not -1"),
    ],
)
@pytest.mark.untyped
def test_impossible_bins_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as raised:
        make()
    assert message in str(raised.value) and "\n" not in str(raised.value)
