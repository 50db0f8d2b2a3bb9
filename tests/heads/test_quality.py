"""Measures of predictions, against float64 and against their definitions."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from rlcls import heads

SUPPORT = heads.Support.uniform(-10, 10, 21)
HEADS = [
    heads.HLGauss(SUPPORT),
    heads.TwoHot(heads.Support.symexp(-3, 3, 15)),
    heads.OneHot(heads.Support.uniform(-3, 3, 8, scalar_transform="symlog")),
    heads.C51(heads.Support.arbitrary([-2.0, 0, 1, 5], on="centers")),
]
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
logits = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(0, 3, (5, 32)))
scalars = hnp.arrays(np.float64, 5, elements=st.floats(-30, 30))
modest = settings(max_examples=30)


@given(hnp.arrays(np.float64, (2, 50), elements=st.floats(-100, 100)))
@modest
def test_explained_variance_is_one_minus_the_share_of_the_variance_of_the_errors(arrays):
    values, returns = arrays
    if returns.var() < 1e-3:
        return
    exact = 1 - (returns - values).var() / returns.var()
    assert isinstance(heads.explained_variance(values, returns), np.generic)
    np.testing.assert_allclose(heads.explained_variance(values, returns), exact, rtol=1e-12)
    shaped = values.reshape(5, 10), returns.reshape(5, 10)
    np.testing.assert_allclose(heads.explained_variance(*shaped), exact, rtol=1e-12)
    on_device = jax.jit(heads.explained_variance)(*arrays.astype(np.float32))
    np.testing.assert_allclose(1 - on_device, 1 - exact, rtol=1e-3, atol=1e-5)


def test_a_constant_explains_nothing_and_the_returns_themselves_everything():
    returns = np.random.default_rng(0).normal(size=100)
    assert heads.explained_variance(np.full(100, 3.0), returns) == pytest.approx(0)
    assert heads.explained_variance(returns + 3, returns) == pytest.approx(1)
    assert np.isnan(heads.explained_variance(np.zeros(3), np.zeros(3)))


@every_head
@given(outputs=logits, scalars=scalars)
@modest
def test_crps_is_the_mean_distance_from_the_scalar_minus_half_the_mean_distance_of_two_samples(
    head, outputs, scalars
):
    outputs, z = outputs[:, : head.num_outputs], head.support.values
    probs = softmax(outputs, -1)
    within = np.einsum("bi,bj,ij->b", probs, probs, np.abs(z[:, None] - z))
    exact = (probs * np.abs(z - scalars[:, None])).sum(-1) - within / 2
    found = jax.jit(heads.crps, static_argnums=0)(head, outputs.astype(np.float32), scalars)
    np.testing.assert_allclose(found, exact, atol=1e-5 * (1 + np.abs(z).max()))
    assert (np.asarray(found) >= 0).all()


@every_head
def test_crps_is_the_integral_of_the_squared_difference_of_distribution_functions(head):
    outputs = np.random.default_rng(0).normal(0, 2, head.num_outputs)
    x, values = np.linspace(-30, 30, 600_001), head.support.values
    below = np.r_[0, np.cumsum(softmax(outputs))][np.searchsorted(values, x, side="right")]
    integral = ((below - (x >= 1.3)) ** 2).sum() * (x[1] - x[0])
    np.testing.assert_allclose(heads.crps(head, jnp.asarray(outputs), 1.3), integral, rtol=1e-3)


@every_head
@given(scalar=st.floats(-30, 30), certain=st.integers(0, 3))
@modest
def test_the_crps_of_a_certain_prediction_is_its_error(head, scalar, certain):
    outputs = np.where(np.arange(head.num_outputs) == certain, 0, -np.inf).astype(np.float32)
    error = abs(head.support.values[certain] - scalar)
    np.testing.assert_allclose(heads.crps(head, outputs, scalar), error, rtol=1e-5, atol=1e-6)


def test_crps_keeps_the_small_masses_of_a_confident_prediction():
    head = heads.TwoHot(heads.Support.uniform(0, 10, 11, on="centers"))
    outputs = np.full(11, -30.0, np.float32)
    outputs[0] = 0
    exact = np.exp(-30.0) * np.arange(11).sum()  # the mean distance from 0
    assert heads.crps(head, outputs, 0.0) < 2 * exact**2 * 10


@every_head
def test_edge_mass_is_the_probability_of_the_outermost_bins(head):
    outputs = np.random.default_rng(0).normal(size=(4, 3, head.num_outputs)).astype(np.float32)
    found = jax.jit(heads.edge_mass, static_argnums=0)(head, outputs)
    np.testing.assert_allclose(found, softmax(outputs, -1)[..., [0, -1]], rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [heads.HLGauss, heads.TwoHot, heads.OneHot])
def test_no_constant_prediction_has_a_lower_loss_than_the_marginal(kind, smoothing):
    head = kind(SUPPORT, label_smoothing=smoothing)
    scalars = np.random.default_rng(0).gamma(2, 2, 5000) - 9
    least = heads.marginal_cross_entropy(head, scalars)
    probs = head.encode(scalars).mean(0) * (1 - smoothing) + smoothing / 21
    best = np.log(np.maximum(probs, 1e-30))

    def loss(logits):
        return -(probs * log_softmax(logits)).sum()

    np.testing.assert_allclose(least, loss(best), rtol=1e-12)
    on_device = jax.jit(lambda x, t: head.loss(x, t).mean())
    repeated = np.broadcast_to(best, (5000, 21)).astype(np.float32)
    np.testing.assert_allclose(least, on_device(repeated, scalars.astype(np.float32)), rtol=1e-4)
    random = np.random.default_rng(1)
    assert all(loss(best + random.normal(0, 0.1, 21)) > least for _ in range(100))


def test_a_collapse_to_the_marginal_has_a_low_cross_entropy_and_no_explained_variance():
    head = heads.recap()
    returns = np.random.default_rng(0).choice([-1.0, -0.1, -0.105], 3000, p=[0.05, 0.5, 0.45])
    probs = head.encode(returns).mean(0)
    collapsed = np.broadcast_to(np.log(probs + 1e-9), (3000, 201)).astype(np.float32)
    cross_entropy = float(head.loss(collapsed, returns).mean())
    assert cross_entropy < 0.2 * np.log(201)  # it looks learnt
    assert cross_entropy == pytest.approx(heads.marginal_cross_entropy(head, returns), rel=1e-4)
    assert abs(heads.explained_variance(np.asarray(head.value(collapsed)), returns)) < 1e-4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: heads.explained_variance(np.zeros(3), np.zeros((3, 1))),
            ValueError,
            "values of shape (3,) do not match returns of shape (3, 1): both must have one shape, which is not empty",
        ),
        (lambda: heads.explained_variance(np.zeros(0), np.zeros(0)), ValueError, "which is not empty"),
        (
            lambda: heads.crps(HEADS[0], np.zeros((3, 21)), np.zeros((3, 1))),
            ValueError,
            "scalars of shape (3, 1) do not match outputs of shape (3, 21)",
        ),
        (
            lambda: heads.marginal_cross_entropy(heads.MSE(), np.zeros(3)),
            TypeError,
            "marginal_cross_entropy: the loss of MSE() is not a cross-entropy to a histogram",
        ),
        (
            lambda: heads.marginal_cross_entropy(heads.HLGauss(SUPPORT, criterion="ordinal"), np.zeros(3)),
            TypeError,
            "is not a cross-entropy to a histogram",
        ),
        (
            lambda: heads.marginal_cross_entropy(HEADS[0], np.array([1, np.nan])),
            ValueError,
            "marginal_cross_entropy: scalars must be finite, and at least one",
        ),
    ],
)
@pytest.mark.untyped
def test_impossible_arguments_are_refused(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)
