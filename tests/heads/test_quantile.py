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
from rlcls.heads import quantile

quantiles = hnp.arrays(np.float32, (3, 7), elements=st.floats(-20, 20, width=32))
modest = settings(max_examples=30)


@given(predicted=quantiles, target=quantiles, kappa=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
@modest
def test_the_quantile_huber_loss_is_its_definition(predicted, target, kappa):
    expected = np.zeros(3)
    for i in range(7):
        errors = target.astype(np.float64) - predicted[:, i : i + 1]
        size = np.abs(errors)
        huber = np.where(size <= kappa, errors**2 / 2, kappa * (size - kappa / 2))
        scaled = huber / kappa if kappa else size
        expected += (np.abs((i + 0.5) / 7 - (errors < 0)) * scaled).mean(-1)
    loss = heads.quantile_huber(predicted, target, kappa=kappa)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


def dense(predicted, target, kappa):
    """The loss with all pairs in one array, which JAX differentiates."""
    n = predicted.shape[-1]
    levels = jnp.asarray((np.arange(n) + 0.5) / n, predicted.dtype)
    errors = target[..., :, None] - predicted[..., None, :]
    inside = jnp.minimum(jnp.abs(errors), kappa)
    huber = inside**2 / 2 + kappa * (jnp.abs(errors) - inside)
    return (jnp.abs(levels - (errors < 0)) * huber / kappa).mean(-2).sum(-1)


WAYS = {"in_blocks": quantile._in_blocks, "at_once": quantile._at_once, "chosen": None}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_targets", [1, 15, 16, 17, 50])
def test_loss_and_gradient_equal_the_dense_form_in_float64(monkeypatch, way, num_targets):
    if WAYS[way] is not None:
        monkeypatch.setattr(quantile, "_in_blocks", WAYS[way])
        monkeypatch.setattr(quantile, "_FEW_PAIRS", 0)
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 3, 21)), 2 * rng.normal(size=(2, 3, num_targets))
    predicted[..., 0] = target[..., 0]  # an error of exactly 0
    for dtype, precision in ((np.float32, 2e-6), (np.float64, 1e-13)):
        with jax.enable_x64(True):
            arguments = jnp.asarray(predicted, dtype), jnp.asarray(target, dtype)
            truth, slope = _with_gradient(dense)(*(x.astype(jnp.float64) for x in arguments), 0.7)
            ours = lambda p, t, kappa: heads.quantile_huber(p, t, kappa=kappa)  # noqa: E731
            loss, gradient = _with_gradient(ours)(*arguments, 0.7)
        assert loss.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(loss, truth, rtol=10 * precision)
        np.testing.assert_allclose(gradient, slope, atol=precision)


def _with_gradient(loss):
    def both(predicted, target, kappa):
        return loss(predicted, target, kappa), jax.grad(lambda p: loss(p, target, kappa).sum())(predicted)

    return jax.jit(both, static_argnums=2)


def test_forward_second_and_batched_derivatives_equal_the_dense_form():
    predicted, target = np.random.default_rng(0).normal(size=(2, 4, 20)).astype(np.float32)
    ours, theirs = (lambda p: heads.quantile_huber(p, target).sum()), (lambda p: dense(p, target, 1.0).sum())
    direction = np.random.default_rng(1).normal(size=(4, 20)).astype(np.float32)
    for f in (
        lambda loss: jax.jvp(loss, (predicted,), (direction,))[1],
        lambda loss: jax.grad(lambda p: (jax.grad(loss)(p) * direction).sum())(predicted),
    ):
        found, expected = jax.jit(lambda f=f: (f(ours), f(theirs)))()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    rows = jax.jit(jax.vmap(jax.grad(lambda p, t: heads.quantile_huber(p, t))))(predicted, target)
    np.testing.assert_allclose(rows, jax.grad(theirs)(predicted), rtol=1e-5, atol=1e-6)


def test_a_nan_target_affects_only_its_own_row_and_an_infinite_target_has_the_largest_slope():
    predicted, target = np.zeros((3, 2), np.float32), np.zeros((3, 40), np.float32)
    target[1, 17], target[2, 3] = np.nan, np.inf
    loss, gradient = _with_gradient(lambda p, t, kappa: heads.quantile_huber(p, t))(predicted, target, 1.0)
    assert np.isnan(loss[1]) and np.isnan(gradient[1]).all() and loss[0] == 0 and not gradient[0].any()
    np.testing.assert_allclose(gradient[2], [-0.25 / 40, -0.75 / 40])


def test_the_memory_does_not_grow_with_the_number_of_pairs():
    shape = jax.ShapeDtypeStruct((64, 501), jnp.float32)
    learning = jax.jit(jax.value_and_grad(lambda p, t: heads.quantile_huber(p, t).sum()))
    compiled = learning.lower(shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 64 * 501 * 4


def test_the_loss_equals_rlax():
    predicted, target = np.random.default_rng(0).normal(size=(2, 5, 9)).astype(np.float32)
    levels = jnp.asarray((np.arange(9) + 0.5) / 9, jnp.float32)
    theirs = jax.vmap(lambda p, t: rlax.quantile_regression_loss(p, levels, t, 1.0))(predicted, target)
    np.testing.assert_allclose(heads.quantile_huber(predicted, target), theirs, rtol=1e-5)


def test_the_loss_is_lowest_at_the_quantiles():
    samples = np.sort(np.random.default_rng(0).exponential(size=4001)).astype(np.float32)
    head = heads.Quantile(num_quantiles=5, kappa=1e-3)
    outputs = np.quantile(samples, (np.arange(5) + 0.5) / 5).astype(np.float32)
    slope = jax.grad(lambda o: heads.quantile_huber(o, samples, kappa=head.kappa))(outputs)
    np.testing.assert_allclose(slope, 0, atol=2e-3)
    assert head.value(outputs) == pytest.approx(1, abs=0.1)


def test_with_kappa_zero_the_gradient_is_that_of_quantile_regression():
    predicted, target = np.random.default_rng(0).normal(size=(2, 4, 20)).astype(np.float32)
    predicted[:, 0] = target[:, 0]  # an error of exactly 0
    levels = (np.arange(20) + 0.5) / 20
    errors = target[:, None, :] - predicted[..., None]
    slopes = -np.where(errors < 0, 1 - levels[:, None], levels[:, None]) * np.sign(errors)
    head = heads.Quantile(num_quantiles=20, kappa=0)
    gradient = jax.grad(lambda o: head.td_loss(o, target).sum())(predicted)
    np.testing.assert_allclose(gradient, slopes.mean(-1), atol=1e-6)
    almost = heads.quantile_huber(predicted, target, kappa=float(np.finfo(np.float32).tiny))
    np.testing.assert_allclose(head.td_loss(predicted, target), almost, rtol=1e-6)


def test_the_td_target_moves_every_quantile():
    head = heads.Quantile(num_quantiles=3)
    target = head.td_target(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0.5]), jnp.array([0.9]))
    np.testing.assert_allclose(target, [[1.4, 2.3, 3.2]], rtol=1e-6)
    np.testing.assert_allclose(head.variance(target), [0.54], rtol=1e-5)


@pytest.mark.untyped
def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="quantile: num_quantiles must be at least 1, not 0"):
        heads.Quantile(0)
    for kappa in (-1.0, 1e-45):
        with pytest.raises(ValueError, match=f"quantile: kappa must be 0 or at least 1.18e-38, not {kappa}"):
            heads.Quantile(kappa=kappa)
    with pytest.raises(ValueError, match=r"targets must have shape \(2,\)|targets of shape"):
        heads.quantile_huber(jnp.zeros((2, 5)), jnp.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"target of shape \(3,\) does not match outputs of shape \(2, 5\)"):
        heads.Quantile(5).td_loss(jnp.zeros((2, 5)), jnp.zeros((3, 5)))
    for shape in ((), (2, 0)):
        with pytest.raises(ValueError, match=r"targets of shape .* must have a last axis of at least 1"):
            heads.quantile_huber(jnp.zeros((2, 5)), jnp.zeros(shape))
    with pytest.raises(TypeError, match="quantiles must be floating point, not int32"):
        heads.quantile_huber(jnp.zeros((2, 5), jnp.int32), jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="quantile_huber: kappa must be 0 or at least 1.18e-38, not -1"):
        heads.quantile_huber(jnp.zeros((2, 5)), jnp.zeros((2, 5)), kappa=-1)
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
