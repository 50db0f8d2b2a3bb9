"""The alternatives to cross-entropy, and label smoothing, against their definitions in float64."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax, xlogy

from rlcls import heads

RANGE = {"vmin": -10, "vmax": 10, "num_bins": 51}
TARGETS = np.linspace(-8, 8, 6).astype(np.float32)
logits = hnp.arrays(np.float32, (6, 51), elements=st.floats(-30, 30, width=32))
modest = settings(max_examples=20)


@given(logits=logits, q=st.sampled_from([0.1, 0.5, 0.7]))
@modest
def test_the_generalised_criterion_is_its_definition_and_bounded(logits, q):
    head = heads.make("hlgauss", **RANGE, criterion="generalised", q=q)
    target = np.asarray(head.encode(jnp.asarray(TARGETS)), np.float64)
    predicted = softmax(logits.astype(np.float64), -1)
    expected = (1 - (target ** (1 - q) * predicted**q).sum(-1)) / q
    loss = np.asarray(head.loss(logits, TARGETS))
    np.testing.assert_allclose(loss, expected, atol=2e-5)
    assert (loss >= 0).all() and (loss <= 1 / q + 1e-6).all()
    np.testing.assert_array_equal(head.divergence(logits, TARGETS), loss)


def test_the_generalised_criterion_of_a_one_hot_target_is_the_generalised_cross_entropy():
    head = heads.make("one_hot", **RANGE, criterion="generalised", q=0.7)
    logits = np.random.default_rng(0).normal(size=(6, 51)).astype(np.float32)
    chosen = np.take_along_axis(softmax(logits, -1), head.encode(TARGETS).argmax(-1)[:, None], -1)[:, 0]
    np.testing.assert_allclose(head.loss(logits, TARGETS), (1 - chosen**0.7) / 0.7, rtol=1e-5)


def test_the_generalised_criterion_tends_to_the_kullback_leibler_divergence_as_q_tends_to_zero():
    logits = np.random.default_rng(0).normal(size=(6, 51)).astype(np.float32)
    plain = heads.make("hlgauss", **RANGE)
    head = heads.make("hlgauss", **RANGE, criterion="generalised", q=1e-3)
    np.testing.assert_allclose(
        head.loss(logits, TARGETS), plain.divergence(logits, TARGETS), rtol=0.01, atol=1e-3
    )


@given(logits=logits)
@modest
def test_the_ordinal_criterion_is_the_squared_distance_of_cumulative_distributions(logits):
    head = heads.make("two_hot", **RANGE, criterion="ordinal")
    difference = softmax(logits.astype(np.float64), -1) - head.encode(TARGETS)
    expected = (np.cumsum(difference, -1) ** 2).sum(-1)
    np.testing.assert_allclose(head.loss(logits, TARGETS), expected, rtol=1e-4, atol=1e-4)


def test_only_the_ordinal_criterion_grows_with_the_distance_of_a_miss():
    certain = 50 * np.eye(51, dtype=np.float32)[[26, 30, 45]]
    target = np.zeros(3, np.float32)
    ordinal = heads.make("one_hot", **RANGE, criterion="ordinal").loss(certain, target)
    plain = heads.make("one_hot", **RANGE).loss(certain, target)
    np.testing.assert_allclose(ordinal, [1, 5, 20], rtol=1e-5)
    np.testing.assert_allclose(plain, 50, rtol=1e-5)


@pytest.mark.parametrize("criterion", ["cross_entropy", "generalised", "ordinal"])
def test_the_gradient_of_every_criterion_is_zero_at_the_target_only(criterion):
    head = heads.make("hlgauss", **RANGE, criterion=criterion)
    slope = jax.jit(jax.grad(lambda outputs: head.loss(outputs, TARGETS).sum()))
    right = np.log(np.maximum(head.encode(TARGETS), 1e-30))
    np.testing.assert_allclose(slope(right), 0, atol=1e-6)
    assert (np.abs(slope(0 * right)).max(-1) > 1e-3).all()
    extreme = slope(1e4 * np.eye(51, dtype=np.float32)[[0, 1, 2, 48, 49, 50]])
    assert np.isfinite(extreme).all()


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 0),
        ({"criterion": "generalised", "q": 0.3}, 0.3),
        ({"criterion": "generalised"}, 0.7),
        ({"criterion": "ordinal"}, 1),
    ],
)
def test_the_gradient_of_a_bounded_criterion_vanishes_where_a_prediction_is_certain_and_wrong(options, rate):
    head = heads.make("two_hot", **RANGE, **options)
    margins = np.array([9.0, 11.0, 13.0], np.float32)
    certain = margins[:, None] * np.eye(51, dtype=np.float32)[20]  # the target is bin 30
    target = np.full(3, head.support.centers[30], np.float32)
    slope = jax.jit(jax.grad(lambda outputs: head.loss(outputs, target).sum()))(certain)
    size = np.abs(np.asarray(slope, np.float64)).max(-1)
    np.testing.assert_allclose(np.diff(np.log(size)), -2 * rate, atol=0.02)


@given(logits=logits)
@modest
def test_smoothing_mixes_the_target_with_all_bins(logits):
    head = heads.make("hlgauss", **RANGE, label_smoothing=0.1)
    target = 0.9 * head.encode(TARGETS).astype(np.float64) + 0.1 / 51
    log_probs = log_softmax(logits.astype(np.float64), -1)
    np.testing.assert_allclose(head.loss(logits, TARGETS), -(target * log_probs).sum(-1), rtol=1e-5)
    divergence = (xlogy(target, target) - target * log_probs).sum(-1)
    np.testing.assert_allclose(head.divergence(logits, TARGETS), divergence, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda outputs: head.loss(outputs, TARGETS).sum())(logits)
    np.testing.assert_allclose(gradient, np.exp(log_probs) - target, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "hlgauss: label_smoothing must be at least 0 and below 1, not 1.0"),
        ({"q": 0.5}, "hlgauss: q (0.5) goes with criterion 'generalised' only"),
        ({"criterion": "generalised", "q": 1}, "hlgauss: q must be above 0 and below 1, not 1.0"),
        (
            {"criterion": "mse"},
            "hlgauss: criterion must be one of cross_entropy, generalised, ordinal, not mse",
        ),
        (
            {"sigma": 1.0, "sigma_ratio": 0.5},
            "hlgauss: give sigma_ratio (0.5) or sigma (1.0), not both",
        ),
        ({"sigma": -1.0}, "hlgauss: sigma must be positive, not -1.0"),
    ],
)
@pytest.mark.untyped
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError) as raised:
        heads.make("hlgauss", **RANGE, **options)
    assert str(raised.value) == message
