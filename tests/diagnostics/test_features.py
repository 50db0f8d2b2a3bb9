"""Rank, spectrum, dormant units and norms of features against NumPy and SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls import diagnostics

SHAPES = [(1, 1), (1, 5), (7, 3), (12, 12), (16, 48)]  # few: each is compiled
METRICS = jax.jit(diagnostics.feature_metrics)

matrices = st.builds(
    lambda shape, seed, decay, offset, dead: features(shape, seed, decay, offset, dead),
    st.sampled_from(SHAPES),
    st.integers(0, 2**31),
    st.floats(0, 1.5),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.floats(0, 0.9),
)


def features(shape, seed=0, decay=0.5, offset=0.0, dead=0.0):
    """Features like those after a ReLU, with unequal scales, nonzero means and dead units."""
    random = np.random.default_rng(seed)
    sizes = (1 + np.arange(shape[1])) ** -decay
    x = np.maximum(random.normal(size=shape) * sizes + offset * sizes, 0)
    x[:, random.random(shape[1]) < dead] = 0
    return x.astype(np.float32)


def values(x, **options):
    return np.asarray(diagnostics.singular_values(x, **options))


# The definitions in the papers, in float64.


def oracle_rankme(x):
    s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    return np.exp(scipy.stats.entropy(s)) if s[0] > 0 else 0.0


def oracle_sranks(x, delta):
    """The rank, and the other ranks that rounding can give."""
    s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    if s[0] == 0:
        return {0}
    found = set()
    for share in (1 - delta, 1 - delta - 1e-5, 1 - delta + 1e-5):
        found.add(next((k for k in range(1, len(s) + 1) if s[:k].sum() >= share * s.sum()), len(s)))
    return found


def oracle_alpha(eigenvalues, first, last):
    ranks = np.arange(first, min(last, len(eigenvalues)) + 1)
    logs = np.log(eigenvalues[first - 1 : last])
    # polyfit multiplies the residuals by w before it squares them.
    return -np.polyfit(np.log(ranks), logs, 1, w=ranks**-0.5)[0]


def oracle_dormant(x, tau):
    scores = np.abs(x.astype(np.float64)).mean(axis=0)
    return (scores <= tau * scores.mean()).mean()


@given(x=matrices)
def test_singular_values_equal_numpy_and_centred_ones_those_of_the_covariance(x):
    exact = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    scale = max(np.linalg.norm(x), 1e-30)
    np.testing.assert_allclose(values(x), exact, atol=1e-5 * scale)
    covariance = np.cov(x.astype(np.float64), rowvar=False, bias=True).reshape(x.shape[1], -1)
    eigenvalues = np.sort(np.linalg.eigvalsh(covariance))[::-1][: min(x.shape)]
    np.testing.assert_allclose(
        values(x, centered=True), np.sqrt(np.maximum(eigenvalues, 0) * len(x)), atol=1e-5 * scale
    )


@given(x=matrices)
def test_metrics_equal_their_published_definitions(x):
    found = METRICS(x)
    np.testing.assert_allclose(found["rankme"], oracle_rankme(x), rtol=1e-3, atol=1e-6)
    assert int(found["srank"]) in oracle_sranks(x, 0.01)
    np.testing.assert_allclose(found["dormant_ratio"], oracle_dormant(x, 0.1), atol=1.5 / x.shape[1])
    np.testing.assert_allclose(
        found["feature_norm"], np.linalg.norm(x.astype(np.float64), axis=1).mean(), rtol=1e-5
    )
    assert not any(np.isnan(value) for value in found.values())


@given(x=matrices, delta=st.sampled_from([1e-7, 0.01, 0.1, 0.5]))
@settings(max_examples=50)
def test_srank_is_the_least_number_of_directions_that_hold_the_share(x, delta):
    assert int(diagnostics.srank(values(x), delta)) in oracle_sranks(x, delta)


@given(x=matrices, scale=st.sampled_from([1e-15, 1e-3, 7.0, 1e15]))
def test_ranks_decay_and_dormant_units_are_invariant_to_scale(x, scale):
    found, scaled = METRICS(x), METRICS(x * np.float32(scale))
    for name in ("rankme", "alpha_req", "dormant_ratio"):
        np.testing.assert_allclose(scaled[name], found[name], rtol=1e-2, atol=1e-3, err_msg=name)
    assert int(scaled["srank"]) in oracle_sranks(x, 0.01)
    np.testing.assert_allclose(scaled["feature_norm"], found["feature_norm"] * scale, rtol=1e-5)


@given(x=matrices, seed=st.integers(0, 2**31))
def test_metrics_are_invariant_to_the_order_of_observations_and_features(x, seed):
    random = np.random.default_rng(seed)
    shuffled = x[random.permutation(len(x))][:, random.permutation(x.shape[1])]
    found, other = METRICS(x), METRICS(shuffled)
    for name in ("rankme", "alpha_req", "dormant_ratio", "feature_norm"):
        np.testing.assert_allclose(other[name], found[name], rtol=1e-2, atol=1e-3, err_msg=name)
    assert int(other["srank"]) in oracle_sranks(x, 0.01)


@given(x=matrices)
def test_ranks_lie_between_1_and_the_smaller_side(x):
    found, most = METRICS(x), min(x.shape)
    least = 1 if x.any() else 0
    assert least - 1e-4 <= found["rankme"] <= most * (1 + 1e-5)
    assert least <= found["srank"] <= most
    assert found["srank"] <= np.linalg.matrix_rank(x.astype(np.float64), tol=1e-7 * np.linalg.norm(x))
    assert 0 <= found["dormant_ratio"] <= 1


@pytest.mark.parametrize("size", [1, 2, 12])
def test_an_identity_has_full_rank_and_a_flat_spectrum(size):
    found = METRICS(3 * np.eye(size, dtype=np.float32))
    np.testing.assert_allclose(found["rankme"], size, rtol=1e-5)
    assert found["srank"] == size and found["dormant_ratio"] == 0
    flat = diagnostics.alpha_req(np.ones(12, np.float32))
    np.testing.assert_allclose(flat, 0, atol=1e-6)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_a_product_of_two_vectors_has_rank_1(seed):
    random = np.random.default_rng(seed)
    x = np.outer(random.normal(size=16), random.normal(size=48)).astype(np.float32)
    found = METRICS(x)
    np.testing.assert_allclose(found["rankme"], 1, rtol=1e-5)
    assert found["srank"] == 1 and found["alpha_req"] == np.inf


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dead_network_has_rank_0_and_only_dormant_units_and_no_nan(shape):
    found = METRICS(np.zeros(shape, np.float32))
    assert {name: float(value) for name, value in found.items()} == {
        "rankme": 0,
        "srank": 0,
        "alpha_req": 0,
        "dormant_ratio": 1,
        "feature_norm": 0,
    }


def test_nan_features_give_nan():
    found = METRICS(np.full((7, 3), np.nan, np.float32))
    assert all(np.isnan(value) for value in found.values())
    activity = {"activity": (np.ones(5, np.float32), np.full(5, np.nan, np.float32))}
    assert np.isnan(diagnostics.shown({"layer": activity})["dormant_ratio"])


@pytest.mark.parametrize("constant", [0, 3, 30, 48])
def test_constant_columns_have_rank_one_and_rank_zero_after_centring(constant):
    x = features((16, 48), seed=1, decay=0.0)
    x[:, :constant] = 0.7
    rest = np.zeros((16, 48), np.float32)
    rest[:, constant:] = x[:, constant:]
    np.testing.assert_allclose(values(x, centered=True), values(rest, centered=True), atol=1e-5)
    np.testing.assert_allclose(METRICS(x)["alpha_req"], METRICS(rest)["alpha_req"], rtol=1e-4)
    if constant == 48:
        np.testing.assert_allclose(METRICS(x)["rankme"], 1, rtol=1e-5)
        assert METRICS(x)["srank"] == 1 and not values(x, centered=True).any()


@pytest.mark.parametrize("dead", [0, 5, 48])
def test_dead_units_are_dormant_and_change_no_rank(dead):
    x = 1 + features((16, 48), seed=2, decay=0.0)
    x[:, :dead] = 0
    for tau in (0.0, 0.1):
        np.testing.assert_allclose(diagnostics.dormant_ratio(x, tau), dead / 48, rtol=1e-6)
    if dead < 48:
        np.testing.assert_allclose(METRICS(x)["rankme"], diagnostics.rankme(values(x[:, dead:])), rtol=1e-4)


@given(alpha=st.floats(0.1, 4), first=st.integers(1, 20), scale=st.sampled_from([1e-20, 1.0, 1e8]))
@settings(max_examples=30)
def test_alpha_is_the_exponent_of_a_power_law(alpha, first, scale):
    spectrum = scale * np.arange(1, 129) ** (-alpha / 2)
    found = diagnostics.alpha_req(spectrum.astype(np.float32), first, 100)
    np.testing.assert_allclose(found, alpha, rtol=1e-3)


@given(seed=st.integers(0, 2**31), first=st.integers(1, 20), last=st.integers(25, 80))
@settings(max_examples=30)
def test_the_fit_equals_the_weighted_fit_of_numpy(seed, first, last):
    spectrum = np.sort(np.random.default_rng(seed).lognormal(size=60))[::-1].astype(np.float32)
    found = diagnostics.alpha_req(spectrum, first, last)
    exact = oracle_alpha(spectrum.astype(np.float64) ** 2, first, last)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("left", [0, 1, 4, 5])
def test_alpha_is_infinite_for_a_spectrum_too_short_to_fit(left):
    spectrum = np.where(np.arange(30) < left, 2.0, 0).astype(np.float32)
    found = diagnostics.alpha_req(spectrum)
    assert found == (0 if left in (0, 5) else np.inf)


def test_units_of_a_convolution_are_its_channels():
    x = np.random.default_rng(0).random((3, 5, 5, 8), np.float32)
    x[..., 2] = 0
    assert diagnostics.dormant_ratio(x) == 1 / 8 == diagnostics.dormant_ratio(x.reshape(-1, 8))


@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=4), seed=st.integers(0, 99)
)
@settings(max_examples=30)
def test_the_norm_of_a_tree_is_that_of_all_its_numbers(shapes, seed):
    random = np.random.default_rng(seed)
    tree = {str(i): random.normal(size=shape) for i, shape in enumerate(shapes)}
    flat = np.concatenate([leaf.ravel() for leaf in tree.values()] or [np.zeros(0)])
    found = diagnostics.global_norm(jax.tree.map(np.float32, tree))
    np.testing.assert_allclose(found, np.linalg.norm(flat), rtol=1e-5)


def test_td_error_is_a_weighted_mean_and_infinite_without_weights():
    values, backups = np.float32([1, 2, 4]), np.float32([0, 4, 1])
    assert diagnostics.td_error(values, backups) == 2
    assert diagnostics.td_error(values, backups, np.float32([1, 1, 0])) == 1.5
    assert diagnostics.td_error(values, backups, np.zeros(3, np.float32)) == np.inf


def test_bfloat16_is_computed_in_float32_and_float64_stays_float64():
    x = features((16, 48), seed=3)
    half = jnp.asarray(x, jnp.bfloat16)
    found = METRICS(half)
    assert all(value.dtype == jnp.float32 for value in found.values())
    np.testing.assert_allclose(found["rankme"], oracle_rankme(np.asarray(half, np.float32)), rtol=1e-3)
    with jax.enable_x64(True):
        exact = METRICS(jnp.asarray(x, jnp.float64))
        assert exact["rankme"].dtype == jnp.float64
        np.testing.assert_allclose(exact["rankme"], oracle_rankme(x), rtol=1e-12)
        spectrum = np.linalg.svd(x - x.astype(np.float64).mean(axis=0), compute_uv=False)[:15]
        np.testing.assert_allclose(exact["alpha_req"], oracle_alpha(spectrum**2, 4, 100), rtol=1e-9)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnostics.singular_values(np.ones(3)), r"features must have shape .*, not \(3,\)"),
        (lambda: diagnostics.singular_values(np.ones((0, 3))), r"features must have shape .*, not \(0, 3\)"),
        (
            lambda: diagnostics.rankme(np.ones((2, 2))),
            r"singular_values must be a vector, not of shape \(2, 2\)",
        ),
        (lambda: diagnostics.srank(np.ones(2), 0.0), "delta must be above 0 and below 1, not 0.0"),
        (
            lambda: diagnostics.alpha_req(np.ones(9), 3, 3),
            "first and last must be 1 <= first < last, not 3 and 3",
        ),
        (lambda: diagnostics.dormant_ratio(np.ones((2, 2)), -0.1), "tau must be at least 0, not -0.1"),
        (lambda: diagnostics.dormant_ratio(np.ones((2, 0))), r"activations must have shape .*, not \(2, 0\)"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
