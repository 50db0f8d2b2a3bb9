"""Heads on transformed and unequal bins, against float64 definitions."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import norm

from rlcls import heads, kernels

POINTS = [-10.0, -3, -1, -0.5, 0, 0.25, 1, 4, 10]
modest = settings(max_examples=30)
inside = hnp.arrays(np.float64, 6, elements=st.floats(-9.9, 9.9))


encode = jax.jit(lambda head, targets: head.encode(targets), static_argnums=0)  # compiled once for each head


@given(targets=inside)
@modest
def test_two_hot_keeps_the_mean_on_any_bins(targets):
    for support in (
        heads.Support.arbitrary(POINTS, on="centers"),
        heads.Support.symexp(-3, 3, 31),
        heads.Support.uniform(-4, 4, 31, on="centers", bin_transform="arcsinh"),
    ):
        head = heads.TwoHot(support)
        encoded = head.encode(targets)
        assert (encoded >= 0).all() and ((encoded > 0).sum(-1) <= 2).all()
        np.testing.assert_allclose(encoded.sum(-1), 1, atol=1e-12)
        np.testing.assert_allclose(head.decode(encoded), targets, atol=1e-12)
        single = np.asarray(encode(head, targets.astype(np.float32)), np.float64)
        np.testing.assert_allclose(single @ support.centers, targets, atol=3e-6)


def test_two_hot_at_a_center_has_all_mass_there():
    encoded = heads.TwoHot(heads.Support.arbitrary(POINTS, on="centers")).encode(np.array(POINTS))
    np.testing.assert_allclose(encoded, np.eye(len(POINTS)), atol=1e-15)


@given(targets=inside)
@modest
def test_hl_gauss_with_one_sigma_for_all_bins_is_a_truncated_normal(targets):
    support, sigma = heads.Support.arbitrary(POINTS), 1.3
    head = heads.HLGauss(support, sigma=sigma)
    mass = np.diff(norm.cdf(support.edges, targets[:, None], sigma))
    expected = mass / mass.sum(-1, keepdims=True)
    np.testing.assert_allclose(head.encode(targets), expected, atol=1e-12)
    np.testing.assert_allclose(encode(head, targets.astype(np.float32)), expected, atol=2e-6)


def test_equal_points_are_the_uniform_support():
    uniform = heads.Support.uniform(-2, 2, 16)
    points = heads.Support.arbitrary(uniform.edges)
    targets = np.linspace(-3, 3, 50)
    for options in ({"sigma": 0.3}, {"sigma_ratio": 1.2}):
        one, other = (heads.HLGauss(support, **options).encode(targets) for support in (uniform, points))
        np.testing.assert_allclose(one, other, atol=1e-12)
    one, other = (heads.OneHot(support).encode(targets) for support in (uniform, points))
    np.testing.assert_array_equal(one, other)


@given(targets=inside)
@modest
def test_local_sigma_is_monotone_on_any_bins(targets):
    head = heads.HLGauss(heads.Support.arbitrary(POINTS), sigma_ratio=0.75)
    encoded = head.encode(np.sort(targets))
    assert (np.diff(np.cumsum(encoded, -1), axis=0) <= 1e-12).all()
    assert (np.diff(head.decode(encoded)) >= -1e-12).all()


def test_with_a_local_sigma_the_histogram_has_the_same_shape_everywhere():
    head = heads.HLGauss(heads.Support.symexp(-20, 20, 255))
    assert isinstance(head.projection, kernels.LocalGaussian)
    centers = head.support.centers[40:-40]
    encoded = head.encode(centers)
    entropy = -(encoded * np.log(np.where(encoded > 0, encoded, 1))).sum(-1)
    np.testing.assert_allclose(entropy, 1.2003, atol=0.01)
    decoded = head.decode(encoded)
    np.testing.assert_allclose(decoded, centers, rtol=0.008, atol=0.01)


def test_hl_gauss_after_symlog_is_hl_gauss_of_symlog():
    plain = heads.HLGauss(heads.Support.uniform(-3, 3, 41))
    squashed = heads.HLGauss(heads.Support.uniform(-3, 3, 41, scalar_transform="symlog"))
    targets = np.linspace(-6, 6, 33)
    symlog = np.sign(targets) * np.log1p(np.abs(targets))
    np.testing.assert_array_equal(squashed.encode(targets), plain.encode(symlog))
    np.testing.assert_allclose(squashed.decode(squashed.encode(targets)), targets, atol=2e-5)


def test_a_scalar_transform_averages_squashed_values_and_a_bin_transform_does_not():
    options = {"vmin": -3, "vmax": 3, "num_bins": 7}
    logits = np.random.default_rng(0).normal(size=(4, 7))
    probs = softmax(logits, -1)
    steps = np.linspace(-3, 3, 7)
    symexp = lambda x: np.sign(x) * np.expm1(np.abs(x))  # noqa: E731
    biased = heads.make("two_hot", **options, scalar_transform="symlog")
    unbiased = heads.make("two_hot", **options, bin_transform="symlog")
    np.testing.assert_allclose(biased.decode(probs), symexp(probs @ steps), rtol=1e-12)
    np.testing.assert_allclose(unbiased.decode(probs), probs @ symexp(steps), rtol=1e-12)
    np.testing.assert_allclose(biased.value(logits), symexp(probs @ steps), rtol=1e-5)
    np.testing.assert_allclose(unbiased.value(logits), probs @ symexp(steps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "support",
    [
        heads.Support.symexp(-20, 20, 255),
        heads.Support.symexp(-20, 20, 256),
        heads.Support.arbitrary([-3.0, -1, 1, 3]),
    ],
    ids=str,
)
def test_equal_logits_decode_to_exactly_zero_on_mirrored_bins(support):
    head = heads.TwoHot(support)
    assert jax.jit(head.value)(jnp.zeros(support.num_bins)) == 0


def test_the_mean_on_bins_that_are_not_mirrored():
    for points in (POINTS, POINTS[:-1]):
        support = heads.Support.arbitrary(points, on="centers")
        logits = np.random.default_rng(0).normal(size=(5, support.num_bins)).astype(np.float32)
        expected = softmax(logits.astype(np.float64), -1) @ support.centers
        np.testing.assert_allclose(
            jax.jit(heads.TwoHot(support).value)(logits), expected, rtol=2e-6, atol=1e-6
        )


def test_the_gradient_is_softmax_minus_target_on_any_bins():
    for head in (
        heads.HLGauss(heads.Support.arbitrary(POINTS), sigma=1.0),
        heads.HLGauss(heads.Support.symexp(-3, 3, 21)),
        heads.OneHot(heads.Support.arbitrary(POINTS)),
        heads.OneHot(heads.Support.uniform(-10, 10, 21)),
        heads.TwoHot(heads.Support.symexp(-3, 3, 21)),
    ):
        targets = np.array([-9.0, 0.1, 3.0, 1e30, -1e30], np.float32)
        logits = np.random.default_rng(0).normal(size=(5, head.num_outputs)).astype(np.float32)
        gradient = jax.jit(jax.grad(lambda o, head=head, t=targets: head.loss(o, t).sum()))(logits)
        expected = np.exp(log_softmax(logits.astype(np.float64), -1)) - head.encode(targets)
        np.testing.assert_allclose(gradient, expected, atol=2e-6)


def test_the_td_target_of_c51_on_symexp_atoms_has_the_mean_of_the_backup():
    head = heads.C51(heads.Support.symexp(-3, 3, 31))
    outputs = np.random.default_rng(0).normal(size=(4, 31)).astype(np.float32)
    rewards, discounts = np.full(4, 0.3, np.float32), np.full(4, 0.8, np.float32)
    target = np.asarray(jax.jit(head.td_target)(outputs, rewards, discounts), np.float64)
    expected = 0.3 + 0.8 * (softmax(outputs.astype(np.float64), -1) @ head.support.centers)
    np.testing.assert_allclose(target @ head.support.centers, expected, atol=1e-5)


def test_a_nan_affects_only_its_own_row():
    targets = np.array([0.5, np.nan, np.inf], np.float32)
    for p in (
        kernels.IrregularTwoHot.between(POINTS),
        kernels.IrregularOneHot.between(POINTS),
        kernels.LocalGaussian.between(POINTS, 0.75),
        kernels.IrregularGaussian.between(POINTS, 1.0),
        kernels.OneHot(-1.0, 1.0, 5),
    ):
        for encoded in (p.encode(targets), np.asarray(jax.jit(p.encode)(targets))):
            assert np.isnan(encoded[1]).any() and np.isfinite(encoded[[0, 2]]).all()
            np.testing.assert_allclose(encoded[[0, 2]].sum(-1), 1, atol=1e-6)
