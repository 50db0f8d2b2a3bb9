"""A support chosen from data, and more bins for a trained layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls import heads


@pytest.mark.parametrize("name", ["two_hot", "hlgauss", "c51"])
def test_padding_a_layer_does_not_change_its_values(name):
    head = heads.make(name, vmin=-10, vmax=10, num_bins=51)
    support = head.support.extend(7, 20)
    wider = type(head)(support)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16, 3 * 51)).astype(np.float32)
    bias = rng.normal(size=3 * 51).astype(np.float32)
    features = rng.normal(size=(32, 16)).astype(np.float32)
    padded_kernel, padded_bias = heads.pad_outputs(kernel, bias, 51, 7, 20)
    assert isinstance(padded_kernel, np.ndarray) and padded_kernel.shape == (16, 3 * 78)
    before = jax.jit(head.value)((features @ kernel + bias).reshape(32, 3, 51))
    after = jax.jit(wider.value)((features @ padded_kernel + padded_bias).reshape(32, 3, 78))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
    with jax.enable_x64(True):
        outputs = (features.astype(np.float64) @ kernel + bias).reshape(32, 3, 51)
        more = (features.astype(np.float64) @ padded_kernel + padded_bias).reshape(32, 3, 78)
        np.testing.assert_allclose(
            wider.value(jnp.asarray(more)), head.value(jnp.asarray(outputs)), atol=1e-12
        )


def test_an_extended_head_compiles_its_functions_once_more():
    head = heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51)
    wider = heads.HLGauss(head.support.extend(2, 3))
    loss = jax.jit(lambda head, outputs, scalars: head.loss(outputs, scalars), static_argnums=0)
    for each in (head, wider, head, wider):
        loss(each, jnp.zeros((4, each.num_outputs)), jnp.zeros(4))
    assert loss._cache_size() == 2


def test_padding_takes_the_arrays_of_any_layer():
    kernel, bias = heads.pad_outputs(jnp.ones((4, 2, 5)), jnp.ones(5), 5, 1, 0, fill=0.0)
    assert kernel.shape == (4, 2, 6) and isinstance(kernel, jax.Array)
    np.testing.assert_array_equal(bias, [0, 1, 1, 1, 1, 1])


@pytest.mark.untyped
def test_arrays_that_do_not_fit_are_refused():
    for kernel, bias in ((jnp.ones((4, 12)), jnp.ones(12)), (jnp.ones(()), jnp.ones(5))):
        with pytest.raises(ValueError, match="a multiple of num_bins = 5"):
            heads.pad_outputs(kernel, bias, 5, 1, 1)


def test_a_suggested_support_holds_the_returns_and_no_more_than_rewards_allow():
    gamma, rng = 0.9, np.random.default_rng(0)
    returns = np.zeros((20, 31))
    for t in reversed(range(30)):
        returns[:, t] = rng.uniform(0, 1, 20) + gamma * returns[:, t + 1]
    returns = returns[:, :-1]
    support = heads.suggest_support(returns, gamma)
    head = heads.HLGauss(support)
    seen = np.array([0.0, returns.min(), returns.max()])
    assert head.clip_fraction(seen) == 0
    np.testing.assert_allclose(head.decode(head.encode(seen)), seen, atol=0.005 * support.width)
    bounds = heads.support_from_rewards(0, 1, gamma)
    assert support.high_edge < bounds.high_edge * 1.01 and support.low_edge < 0
    margin = 3 * 0.75 * bounds.width
    assert bounds.low_edge + margin == pytest.approx(0) and bounds.high_edge - margin == pytest.approx(10)


def test_scaled_rewards_have_returns_of_one_size_inside_the_support():
    support = heads.Support.uniform(-5, 5, 101)
    returns = np.random.default_rng(0).normal(size=(3, 400)) * [[1e-3], [1.0], [1e4]]
    returns = np.concatenate([returns, np.zeros((1, 400))])
    scale = heads.reward_scale(returns, support)
    scaled = scale[:, None] * returns
    assert np.abs(scaled).max() <= support.centers[-1]
    rare = np.r_[np.zeros(99), 7.0]
    assert rare.max() * heads.reward_scale(rare, support) == pytest.approx(support.centers[-1])
    np.testing.assert_allclose(scaled[:3].std(-1), 1, atol=0.05)
    assert scale[3] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heads.suggest_support(np.zeros(3), 0.9), "returns are all 0"),
        (lambda: heads.suggest_support(np.array([1.0, np.nan]), 0.9), "returns must be finite"),
        (lambda: heads.suggest_support(np.ones(3), 1.0), "gamma must be at least 0 and below 1, not 1.0"),
        (
            lambda: heads.support_from_rewards(1, 0, 0.9),
            "min_reward (1.0) must not be above max_reward (0.0)",
        ),
        (lambda: heads.support_from_rewards(0, 0, 0.9), "vmin (0.0) must be below vmax (0.0)"),
        (
            lambda: heads.reward_scale(np.ones((1, 3)), heads.Support.uniform(1, 2, 5)),
            "0 must be inside the support",
        ),
        (lambda: heads.suggest_support(np.float64(1), 0.9), "not of shape ()"),
        (
            lambda: heads.reward_scale(np.array([[1.0, np.inf]]), heads.Support.uniform(-1, 1, 5)),
            "reward_scale: returns must be finite and at least one along the last axis, not with NaN or infinity",
        ),
    ],
)
@pytest.mark.untyped
def test_data_without_a_range_are_refused(call, message):
    with pytest.raises(ValueError) as raised:
        call()
    assert message in str(raised.value)
