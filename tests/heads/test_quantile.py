"""QR-DQN's loss, and the binary cross-entropy, against their definitions."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, xlogy

from rlcls import heads

quantiles = hnp.arrays(np.float32, (3, 7), elements=st.floats(-20, 20, width=32))
modest = settings(max_examples=30)


@given(predicted=quantiles, target=quantiles, kappa=st.sampled_from([0.5, 1.0, 3.0]))
@modest
def test_the_quantile_huber_loss_is_its_definition(predicted, target, kappa):
    expected = np.zeros(3)
    for i in range(7):
        errors = target.astype(np.float64) - predicted[:, i : i + 1]
        size = np.abs(errors)
        huber = np.where(size <= kappa, errors**2 / 2, kappa * (size - kappa / 2))
        expected += (np.abs((i + 0.5) / 7 - (errors < 0)) * huber / kappa).mean(-1)
    loss = heads.quantile_huber(predicted, target, kappa=kappa)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


def test_rlax_has_the_same():
    predicted, target = np.random.default_rng(0).normal(size=(2, 5, 9)).astype(np.float32)
    levels = jnp.asarray((np.arange(9) + 0.5) / 9, jnp.float32)
    theirs = jax.vmap(lambda p, t: rlax.quantile_regression_loss(p, levels, t, 1.0))(predicted, target)
    np.testing.assert_allclose(heads.quantile_huber(predicted, target), theirs, rtol=1e-5)


def test_the_loss_is_least_at_the_quantiles():
    samples = np.sort(np.random.default_rng(0).exponential(size=4001)).astype(np.float32)
    head = heads.Quantile(num_quantiles=5, kappa=1e-3)
    outputs = np.quantile(samples, (np.arange(5) + 0.5) / 5).astype(np.float32)
    slope = jax.grad(lambda o: heads.quantile_huber(o, samples, kappa=head.kappa))(outputs)
    np.testing.assert_allclose(slope, 0, atol=2e-3)
    assert head.value(outputs) == pytest.approx(1, abs=0.1)


def test_the_td_target_moves_every_quantile():
    head = heads.Quantile(num_quantiles=3)
    target = head.td_target(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0.5]), jnp.array([0.9]))
    np.testing.assert_allclose(target, [[1.4, 2.3, 3.2]], rtol=1e-6)
    np.testing.assert_allclose(head.variance(target), [0.54], rtol=1e-5)


@pytest.mark.untyped
def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="quantile: num_quantiles must be at least 1, not 0"):
        heads.Quantile(0)
    with pytest.raises(ValueError, match="quantile: kappa must be positive, not 0"):
        heads.Quantile(kappa=0)
    with pytest.raises(ValueError, match=r"targets must have shape \(2,\)|targets of shape"):
        heads.quantile_huber(jnp.zeros((2, 5)), jnp.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"bce: vmin \(1.0\) must be below vmax \(0.0\)"):
        heads.BCE(1, 0)


@given(
    logits=hnp.arrays(np.float32, 6, elements=st.floats(-50, 50, width=32)),
    scalars=hnp.arrays(np.float32, 6, elements=st.floats(-1, 2, width=32, allow_subnormal=False)),
)
@modest
def test_bce_is_the_binary_cross_entropy_of_the_clipped_scalar(logits, scalars):
    head, outputs = heads.BCE(), logits[:, None]
    share, x = np.clip(scalars.astype(np.float64), 0, 1), logits.astype(np.float64)
    loss = np.logaddexp(0, x) - share * x
    np.testing.assert_allclose(head.loss(outputs, scalars), loss, rtol=1e-5, atol=1e-5)
    divergence = loss + xlogy(share, share) + xlogy(1 - share, 1 - share)
    np.testing.assert_allclose(head.divergence(outputs, scalars), divergence, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(head.value(outputs), expit(x), rtol=1e-5)
    gradient = jax.grad(lambda o: head.loss(o, scalars).sum())(outputs)
    np.testing.assert_allclose(gradient[:, 0], expit(x) - share, atol=1e-6)
    assert head.clip_fraction(scalars) == pytest.approx(np.mean((scalars < 0) | (scalars > 1)))
