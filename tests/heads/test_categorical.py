"""Categorical heads against published numbers and against float64."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax, xlogy

from rlcls import heads

SUPPORT = heads.Support.uniform(-10, 10, 51)
ATOMS = heads.Support.uniform(-10, 10, 51, on="centers")
HEADS = [heads.HLGauss(SUPPORT), heads.TwoHot(ATOMS), heads.C51(ATOMS)]
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)

scalars = hnp.arrays(np.float64, 6, elements=st.floats(-7, 7))
logits = hnp.arrays(np.float32, (6, 51), elements=st.floats(-30, 30, width=32))
modest = settings(max_examples=30)


@every_head
@given(targets=scalars)
@modest
def test_encode_then_decode_is_the_identity_inside_the_support(head, targets):
    bias = 2e-6 if head.name == "hlgauss" else 1e-13  # 1.8e-6: the published figure at a ratio of 0.75
    np.testing.assert_allclose(head.decode(head.encode(targets)), targets, atol=bias)


def test_near_an_edge_hl_gauss_decodes_to_the_published_bias():
    head = heads.HLGauss(SUPPORT)
    targets = np.array([9.0, 9.25, 9.5, 9.75, 10.0])
    expected = [8.9996, 9.245, 9.467, 9.633, 9.729]
    np.testing.assert_allclose(head.decode(head.encode(targets)), expected, atol=5e-4)
    np.testing.assert_allclose(head.decode(head.encode(-targets)), np.negative(expected), atol=5e-4)


@every_head
def test_a_target_outside_the_support_is_the_target_at_its_edge(head):
    edge = head.encode(np.array([-10.0, 10.0]))
    for beyond in (10.01, 12.0, 1e30, np.inf):
        np.testing.assert_allclose(head.encode(np.array([-beyond, beyond])), edge, atol=1e-15)


@every_head
@given(targets=scalars)
@modest
def test_decoding_is_monotone_and_mirrored(head, targets):
    targets = np.sort(targets)
    decoded = head.decode(head.encode(targets))
    assert (np.diff(decoded) >= -1e-13).all()
    np.testing.assert_allclose(head.decode(head.encode(-targets)), -decoded, atol=1e-12)


@every_head
@given(targets=scalars)
@modest
def test_moving_a_target_by_a_bin_moves_its_histogram_by_one(head, targets):
    moved = head.encode(targets + head.support.width)
    np.testing.assert_allclose(moved[:, 1:], head.encode(targets)[:, :-1], atol=1e-9)


def test_hl_gauss_tends_to_one_hot_as_sigma_tends_to_zero():
    targets = np.random.default_rng(0).uniform(-10, 10, 50)
    encoded = heads.HLGauss(SUPPORT, sigma_ratio=1e-6).encode(targets)
    np.testing.assert_allclose(encoded.max(-1), 1, atol=1e-9)
    np.testing.assert_array_equal(encoded.argmax(-1), np.floor((targets + 10) / SUPPORT.width))


def test_the_floor_of_the_hl_gauss_loss_is_the_published_entropy():
    targets = np.linspace(-5, 5, 101)
    for ratio, entropy in [(0.75, 1.2003), (1.0, 1.459), (2.0, 2.122)]:
        probs = heads.HLGauss(SUPPORT, ratio).encode(targets)
        np.testing.assert_allclose(-xlogy(probs, probs).sum(-1), entropy, atol=2e-3)


@every_head
@given(logits=logits, targets=scalars)
@modest
def test_losses_divergences_and_gradients_equal_their_definitions(head, logits, targets):
    target = head.encode(targets.astype(np.float32)).astype(np.float64)
    log_probs = log_softmax(logits.astype(np.float64), -1)
    losses, gradient = (f(logits, targets.astype(np.float32)) for f in _jitted(head))
    loss, divergence, value = losses
    np.testing.assert_allclose(loss, -(target * log_probs).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        divergence, (xlogy(target, target) - target * log_probs).sum(-1), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(value, np.exp(log_probs) @ head.support.centers, atol=2e-5)
    np.testing.assert_allclose(gradient, np.exp(log_probs) - target, atol=2e-6)


@functools.cache
def _jitted(head):
    def losses(outputs, targets):
        return head.loss(outputs, targets), head.divergence(outputs, targets), head.value(outputs)

    return jax.jit(losses), jax.jit(jax.grad(lambda outputs, targets: head.loss(outputs, targets).sum()))


@every_head
def test_equal_logits_decode_to_exactly_zero_on_a_symmetric_support(head):
    others = [type(head)(heads.Support.uniform(-7.3, 7.3, n, on=head.support.on)) for n in (2, 50, 51, 256)]

    @jax.jit
    def values(fill):
        equal = [fill[:, None] * jnp.ones((1, other.num_outputs)) for other in others]
        return [(o.value(x), o.decode(o.probs(x))) for o, x in zip(others, equal, strict=True)]

    assert not np.any(values(jnp.array([0.0, -3.7, 1e4])))


@every_head
def test_mirrored_logits_have_the_opposite_value(head):
    outputs = jax.random.normal(jax.random.key(0), (20, 51))
    value = jax.jit(head.value)
    np.testing.assert_allclose(value(outputs[:, ::-1]), -value(outputs), rtol=1e-6)


def test_the_value_on_a_support_that_is_not_symmetric():
    support = heads.Support.uniform(2, 9, 8, on="centers")
    outputs = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    expected = softmax(outputs.astype(np.float64), -1) @ support.centers
    np.testing.assert_allclose(jax.jit(heads.TwoHot(support).value)(outputs), expected, rtol=1e-6)


@every_head
def test_extreme_logits_have_finite_losses_and_gradients(head):
    outputs = jnp.array([[0.0] * 50 + [1e4], [-1e30] * 25 + [0.0] * 26, [-jnp.inf] * 25 + [0.0] * 26])
    targets = jnp.array([-3.0, 3.0, 5.0])
    (loss, value), gradient = jax.jit(
        jax.value_and_grad(lambda o: (head.loss(o, targets).sum(), head.value(o)), has_aux=True)
    )(outputs)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert np.isfinite(value).all()


def test_decode_of_numpy_is_numpy():
    head = heads.HLGauss(SUPPORT)
    for dtype, kept in ((np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        decoded = head.decode(head.encode(np.zeros((2, 3))).astype(dtype))
        assert isinstance(decoded, np.ndarray) and decoded.dtype == kept and decoded.shape == (2, 3)
    assert isinstance(jax.jit(head.decode)(np.full((2, 51), 1 / 51)), jax.Array)


def test_the_loss_of_equal_logits_is_the_logarithm_of_the_number_of_bins():
    for head in HEADS:
        np.testing.assert_allclose(jax.jit(head.loss)(jnp.zeros(51), 0.0), np.log(51), rtol=1e-6)


# C51's distributional target


def projected_in_float64(probs, rewards, discounts, atoms):
    """Algorithm 1 of Bellemare et al. 2017, in loops."""
    width, target = atoms[1] - atoms[0], np.zeros_like(probs)
    for row, (reward, discount) in enumerate(zip(rewards, discounts, strict=True)):
        for j, atom in enumerate(atoms):
            place = (np.clip(reward + discount * atom, atoms[0], atoms[-1]) - atoms[0]) / width
            lower = min(int(np.floor(place)), len(atoms) - 2)
            target[row, lower] += probs[row, j] * (lower + 1 - place)
            target[row, lower + 1] += probs[row, j] * (place - lower)
    return target


def test_the_td_target_of_c51_is_its_definition():
    head, rng = heads.C51(ATOMS), np.random.default_rng(0)
    outputs = rng.normal(size=(8, 51)).astype(np.float32)
    rewards = np.r_[rng.uniform(-12, 12, 6), 0.4, 0].astype(np.float32)
    discounts = np.r_[rng.uniform(0, 1, 5), 0, 1, 1].astype(np.float32)
    target = jax.jit(head.td_target)(outputs, rewards, discounts)
    probs = softmax(outputs.astype(np.float64), -1)
    expected = projected_in_float64(probs, rewards, discounts, ATOMS.centers)
    np.testing.assert_allclose(target, expected, atol=2e-6)
    np.testing.assert_allclose(target.sum(-1), 1, atol=1e-6)
    # The last row has discount 1 and reward 0, which do not move any atom.
    np.testing.assert_allclose(target[-1], probs[-1], atol=5e-7)


@given(
    outputs=logits,
    rewards=hnp.arrays(np.float32, 6, elements=st.floats(-1, 1, width=32)),
    discounts=hnp.arrays(np.float32, 6, elements=st.floats(0, 0.875, width=32)),
)
@modest
def test_the_td_target_of_c51_has_the_mean_of_the_backup(outputs, rewards, discounts):
    head = heads.C51(ATOMS)
    target = np.asarray(_c51_target(outputs, rewards, discounts), np.float64)
    expected = rewards + discounts * (softmax(outputs.astype(np.float64), -1) @ ATOMS.centers)
    np.testing.assert_allclose(target @ head.support.centers, expected, atol=2e-5)


_c51_target = jax.jit(heads.C51(ATOMS).td_target)


@pytest.mark.parametrize("support", [ATOMS, heads.Support.symexp(-3, 3, 31)], ids=["even", "symexp"])
def test_c51_puts_a_terminal_reward_on_its_atom_or_the_outermost_one(support):
    atoms, k = support.centers, support.num_bins
    rewards = np.r_[atoms, atoms[0], atoms[-1], -1e30, 1e30].astype(np.float32)
    outputs = np.random.default_rng(0).normal(size=(len(rewards), k)).astype(np.float32)
    target = jax.jit(heads.C51(support).td_target)(outputs, rewards, np.zeros_like(rewards))
    np.testing.assert_allclose(target, np.eye(k)[[*range(k), 0, k - 1, 0, k - 1]], atol=3e-6)


def test_c51_equals_rlax_between_atoms():
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(4, 51)).astype(np.float32)
    rewards, discounts = rng.uniform(-1, 1, 4).astype(np.float32), np.full(4, 0.9, np.float32)
    atoms = ATOMS.centers.astype(np.float32)
    project = jax.jit(jax.vmap(lambda r, g, p: rlax.categorical_l2_project(r + g * atoms, p, atoms)))
    expected = project(rewards, discounts, jax.nn.softmax(outputs))
    np.testing.assert_allclose(_c51_target(outputs, rewards, discounts), expected, atol=2e-6)


def test_a_nan_reward_makes_only_its_own_row_of_the_c51_target_nan():
    target = _c51_target(jnp.zeros((2, 51)), jnp.array([jnp.nan, 0.0]), jnp.ones(2))
    assert np.isnan(target[0]).all() and np.isfinite(target[1]).all()


def test_the_td_divergence_of_c51_is_the_loss_minus_the_entropy_of_the_target():
    head = heads.C51(ATOMS)
    outputs, next_outputs = jax.random.normal(jax.random.key(0), (2, 5, 51))
    target = np.asarray(_c51_target(next_outputs, jnp.ones(5), jnp.full(5, 0.9)), np.float64)
    outputs = np.asarray(outputs, np.float64)
    entropy = -xlogy(target, target).sum(-1)
    loss = logsumexp(outputs, axis=-1) - (target * outputs).sum(-1)
    found, pullback = jax.vjp(jax.jit(lambda o: head.td_loss(o, target)), outputs.astype(np.float32))
    np.testing.assert_allclose(found, loss, atol=1e-5)
    np.testing.assert_allclose(*pullback(jnp.ones(5)), softmax(outputs, -1) - target, atol=2e-6)
    np.testing.assert_allclose(jax.jit(head.td_divergence)(outputs, target), loss - entropy, atol=1e-5)
