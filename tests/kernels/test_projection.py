"""Projections against float64 and exact rational arithmetic."""

from fractions import Fraction

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import erfc

from rlcls import kernels

ENDS = [(-10.0, 10.0), (-10.7, 9.3), (1000.0, 1001.0), (0.0, 1e-3)]
FLOAT32 = np.float32


def exact_place(low, high, cells, target):
    return (Fraction(float(target)) - Fraction(low)) / ((Fraction(high) - Fraction(low)) / cells)


def gaussian_in_float64(p, targets):
    """Renormalised differences of the distribution function, each taken in the tail where it keeps its digits."""
    edges = p.low_edge + (p.high_edge - p.low_edge) * np.arange(p.num_bins + 1) / p.num_bins
    inside = np.clip(np.asarray(targets, np.float64), p.low_edge, p.high_edge)
    u = (edges - inside[:, None]) / p.sigma / np.sqrt(2)
    below, above = u[:, :-1], u[:, 1:]
    flip = below + above < 0
    mass = erfc(np.where(flip, -above, below)) - erfc(np.where(flip, -below, above))
    return mass / mass.sum(1, keepdims=True)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("num_bins", [2, 51, 8192, 131_072])
def test_splitting_a_target_equals_exact_arithmetic(ends, num_bins):
    low, high = ends
    p = kernels.Gaussian(low, high, num_bins, 1.0)
    targets = np.random.default_rng(0).uniform(low, high, 200).astype(FLOAT32)
    targets = targets[(targets >= low) & (targets <= high)]
    for bins, fractions in (jax.jit(p.split)(targets), p.split(targets)):
        assert bins.dtype == np.int32 and fractions.dtype == FLOAT32
        for target, j, f in zip(targets, np.asarray(bins), np.asarray(fractions), strict=True):
            place = int(j) + Fraction(float(f))
            assert abs(place - exact_place(low, high, num_bins, target)) < 2e-7
            assert 0 <= j < num_bins and 0 <= f <= 1


@given(target=st.floats(-10.5, 10.5), num_bins=st.integers(2, 200_000))
@settings(max_examples=100)
def test_a_float64_target_is_split_in_float64(target, num_bins):
    p = kernels.Gaussian(-10.5, 10.5, num_bins, 1.0)
    bins, fractions = p.split(np.array([target]))
    place = int(bins[0]) + Fraction(float(fractions[0]))
    assert abs(place - exact_place(-10.5, 10.5, num_bins, target)) < 5e-16


def test_float64_targets_have_float64_histograms():
    p = kernels.Gaussian(-10.7, 9.3, 131_072, 0.75 * 20 / 131_072)
    targets = np.random.default_rng(0).uniform(-10, 9, 4)
    truth = gaussian_in_float64(p, targets)
    with jax.enable_x64(True):
        encoded = jax.jit(p.encode)(jnp.asarray(targets))
        assert encoded.dtype == jnp.float64
        np.testing.assert_allclose(encoded, truth, atol=1e-11)
    np.testing.assert_allclose(p.encode(targets), truth, atol=1e-11)


@pytest.mark.parametrize(
    ("num_bins", "ratio"),
    [(51, 0.25), (51, 0.75), (1000, 2.0), (8192, 50.0), (131_072, 0.75), (131_072, 9.9), (131_072, 1000.0)],
)
def test_float32_histograms_are_accurate_for_any_number_of_bins(num_bins, ratio):
    low, high = -10.7, 9.3
    p = kernels.Gaussian(low, high, num_bins, ratio * (high - low) / num_bins)
    rng = np.random.default_rng(0)
    targets = np.r_[rng.uniform(low, high, 6), low, high, 1e30, -1e30, np.inf, -np.inf].astype(FLOAT32)
    truth = gaussian_in_float64(p, targets)
    cost = 3 * rng.normal(size=truth.shape) + 10
    for encoded in (np.asarray(jax.jit(p.encode)(targets)), p.encode(targets)):
        assert encoded.dtype == FLOAT32 and (encoded >= 0).all()
        np.testing.assert_allclose(encoded, truth, atol=4e-7)
        np.testing.assert_allclose(encoded.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose((encoded * cost).sum(1), (truth * cost).sum(1), atol=1e-5)


PROJECTIONS = [
    kernels.Gaussian(-10.0, 10.0, 51, 0.75 * 20 / 51),
    kernels.Gaussian(-3.0, 5.0, 2, 1e-9),
    kernels.Gaussian(-3.0, 5.0, 7, 1e-300),
    kernels.TwoHot(-10.0, 10.0, 51),
    kernels.TwoHot(0.0, 1.0, 2),
]
any_float32 = hnp.arrays(FLOAT32, 8, elements=st.floats(width=32, allow_nan=False))


@pytest.mark.parametrize("p", PROJECTIONS, ids=str)
@given(targets=any_float32)
@settings(max_examples=25)
def test_every_histogram_is_a_distribution(p, targets):
    encoded = np.asarray(p.encode(targets))
    assert encoded.shape == (8, p.num_bins)
    assert (encoded >= 0).all()
    np.testing.assert_allclose(encoded.sum(-1), 1, atol=1e-6)


@given(targets=hnp.arrays(FLOAT32, 8, elements=st.floats(-10, 10, width=32)))
@example(targets=np.linspace(-10, 10, 51, dtype=FLOAT32)[[0, 1, 2, 24, 25, 26, 49, 50]])
@settings(max_examples=100)
def test_two_hot_keeps_the_mean_also_at_centers_and_ends(targets):
    p = kernels.TwoHot(-10.0, 10.0, 51)
    encoded = p.encode(targets).astype(np.float64)
    np.testing.assert_allclose(encoded @ np.linspace(-10, 10, 51), targets, atol=2e-7)
    assert ((encoded > 0).sum(-1) <= 2).all()


def test_a_nan_affects_only_its_own_row():
    for p in PROJECTIONS:
        targets = np.array([0.5, np.nan, 0.25], FLOAT32)
        for encoded in (p.encode(targets), np.asarray(jax.jit(p.encode)(targets))):
            assert np.isnan(encoded[1]).all()
            assert np.isfinite(encoded[[0, 2]]).all()


def test_numpy_in_is_numpy_out_and_equals_jax():
    targets = np.random.default_rng(0).uniform(-12, 12, (3, 5)).astype(FLOAT32)
    for p in PROJECTIONS[:1] + PROJECTIONS[3:]:
        with_numpy, with_jax = p.encode(targets), jax.jit(p.encode)(targets)
        assert isinstance(with_numpy, np.ndarray) and isinstance(with_jax, jax.Array)
        np.testing.assert_allclose(with_numpy, with_jax, atol=3e-7)


def test_a_distribution_keeps_its_mean_when_it_is_projected():
    p = kernels.TwoHot(-10.0, 10.0, 51)
    rng = np.random.default_rng(0)
    probs, places = rng.dirichlet(np.ones(30), 4), rng.uniform(-10, 10, (4, 30))
    projected = p.project(probs, places)
    np.testing.assert_allclose(projected.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(projected @ np.linspace(-10, 10, 51), (probs * places).sum(-1), atol=1e-12)


def test_projections_are_static_arguments():
    jitted = jax.jit(lambda p, t: p.encode(t), static_argnums=0)
    jitted(kernels.TwoHot(-1.0, 1.0, 3), jnp.zeros(2))
    jitted(kernels.TwoHot(-1.0, 1.0, 3), jnp.zeros(2))
    assert jitted._cache_size() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kernels.Gaussian(1.0, 1.0, 5, 1.0), "first below the second, not 1.0 and 1.0"),
        (lambda: kernels.TwoHot(0.0, float("inf"), 5), "finite ends"),
        (lambda: kernels.TwoHot(0.0, 1.0, 1), "num_bins must be at least 2, not 1"),
        (lambda: kernels.Gaussian(0.0, 1.0, 5, 0.0), "sigma must be positive and finite, not 0.0"),
    ],
)
@pytest.mark.untyped
def test_impossible_projections_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
