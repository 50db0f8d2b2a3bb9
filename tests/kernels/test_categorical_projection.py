"""The cross-entropy to a projected distribution against a sum over atoms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls import kernels
from rlcls.kernels.categorical_projection import xla

from .oracle import cross_entropy

with_reference = pytest.mark.parametrize("name", ["reference", "cpu", "tpu"], indirect=True)


def sample(num_bins, batch=7, seed=0):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(batch, num_bins))
    next_logits = 3 * rng.normal(size=(batch, num_bins))
    next_probs = np.exp(next_logits) / np.exp(next_logits).sum(1, keepdims=True)
    rewards = np.r_[-10.7, 9.3, 1e30, -1e30, 0.0, rng.normal(size=batch - 5)]
    discounts = np.r_[0.0, 1.0, 0.99, 0.97, 1.0, rng.uniform(0, 1, batch - 5)]
    return [x.astype(np.float32) for x in (logits, next_probs, rewards, discounts)]


def projected(p, next_probs, rewards, discounts):
    """The projected distribution of each row, added up atom by atom in float64."""
    steps = p.num_bins - 1
    atoms = p.first_center + (p.last_center - p.first_center) * np.arange(p.num_bins) / steps
    moved = rewards[:, None].astype(np.float64) + discounts[:, None].astype(np.float64) * atoms
    place = (np.clip(moved, p.first_center, p.last_center) - p.first_center) * steps
    place /= p.last_center - p.first_center
    lower = np.clip(np.floor(place), 0, steps - 1).astype(int)
    found = np.zeros((len(rewards), p.num_bins))
    for row in range(len(rewards)):
        np.add.at(found[row], lower[row], next_probs[row] * (1 - (place - lower)[row]))
        np.add.at(found[row], lower[row] + 1, next_probs[row] * (place - lower)[row])
    return found


def run(name, p, logits, *rest):
    """Loss, lse, and the gradient of the sum of (row number * loss + lse / 2)."""
    factors = jnp.arange(1, len(logits) + 1, dtype=jnp.float32)

    @jax.jit
    def total(logits):
        loss, lse = kernels.categorical_projection_cross_entropy(
            logits, *rest, p, weights=factors, return_lse=True, implementation=name
        )
        return (loss + lse / 2).sum(), (loss / factors, lse)

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return *found, gradient


@pytest.fixture(params=["cpu", "tpu"])
def name(request, monkeypatch):
    """The name of an implementation. "cpu" and "tpu" select the branch that "xla" takes on that platform."""
    if request.param == "reference":
        return "reference"
    monkeypatch.setattr(
        xla.lax,
        "platform_dependent",
        lambda *arrays, **branches: branches.get(request.param, branches["default"])(*arrays),
    )
    # Blocks of a few rows, so that a small batch has several blocks.
    monkeypatch.setattr(xla, "_FEW", 1)
    monkeypatch.setattr(xla, "_MANY", 1)
    return "xla"


@with_reference
@pytest.mark.parametrize(("num_bins", "batch"), [(2, 7), (51, 19), (1000, 8)])
def test_values_and_gradients_are_those_of_float64(name, num_bins, batch):
    p = kernels.TwoHot(-10.7, 9.3, num_bins)
    logits, *rest = sample(num_bins, batch)
    loss, lse, gradient, softmax = cross_entropy(logits, projected(p, *rest))
    factors = np.arange(1, batch + 1)[:, None]
    found = run(name, p, logits, *rest)
    # Atoms are moved in float32, with an error of 1e-6, which is 5e-5 of a bin if there are 1000.
    np.testing.assert_allclose(found[0], loss, rtol=1e-5, atol=1e-5 * num_bins**0.5)
    np.testing.assert_allclose(found[1], lse, rtol=1e-6)
    np.testing.assert_allclose(
        found[2] / factors, gradient + softmax / 2 / factors, atol=5e-5 if num_bins > 51 else 3e-6
    )


def test_float64_stays_float64_and_bfloat16_is_summed_in_float32(name):
    p = kernels.TwoHot(-10.7, 9.3, 51)
    arguments = sample(51)
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in arguments]
        wide[1] /= wide[1].sum(1, keepdims=True)
        probs = projected(p, *(np.asarray(x) for x in wide[1:]))
        loss, _, gradient, softmax = cross_entropy(wide[0], probs)
        found = run(name, p, *wide)
        assert found[2].dtype == found[0].dtype == jnp.float64
        np.testing.assert_allclose(found[0], loss, rtol=1e-12)
        np.testing.assert_allclose(found[2], np.arange(1, 8)[:, None] * gradient + softmax / 2, atol=1e-12)
    narrow = jnp.asarray(arguments[0], jnp.bfloat16)
    found, same = (
        run(name, p, narrow, *arguments[1:]),
        run(name, p, narrow.astype(jnp.float32), *arguments[1:]),
    )
    assert found[2].dtype == jnp.bfloat16
    np.testing.assert_allclose(found[0], same[0], rtol=1e-6)
    np.testing.assert_allclose(found[2].astype(np.float32), same[2], rtol=2**-8, atol=1e-6)


def test_padding_leading_dimensions_and_vmap(name):
    p = kernels.TwoHot(-10.7, 9.3, 51)
    logits, *rest = sample(51, batch=12)
    bare = run(name, p, logits, *rest)
    padded = run(name, p, np.pad(logits, ((0, 0), (0, 13)), constant_values=np.nan), *rest)
    np.testing.assert_allclose(padded[0], bare[0], rtol=1e-6)
    np.testing.assert_allclose(padded[2][:, :51], bare[2], atol=1e-6)
    assert (padded[2][:, 51:] == 0).all()

    def loss(*arguments):
        return kernels.categorical_projection_cross_entropy(*arguments, p, implementation=name)

    shaped = [x.reshape(3, 4, *x.shape[1:]) for x in (logits, *rest)]
    np.testing.assert_allclose(jax.jit(loss)(*shaped).reshape(12), bare[0], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*shaped).reshape(12), bare[0], rtol=1e-6)


def test_a_discount_of_zero_is_the_two_hot_loss(name):
    p = kernels.TwoHot(-10.7, 9.3, 51)
    logits, next_probs, _, _ = sample(51)
    rewards = np.linspace(-12, 12, 7, dtype=np.float32)
    found = run(name, p, logits, next_probs, rewards, np.zeros(7, np.float32))
    truth = kernels.histogram_cross_entropy(logits, rewards, p)
    np.testing.assert_allclose(found[0], truth, rtol=2e-6)


@with_reference
def test_a_nan_affects_only_its_own_row(name):
    p = kernels.TwoHot(-10.7, 9.3, 51)
    logits, next_probs, rewards, discounts = sample(51)
    rewards[1], discounts[3], next_probs[5, 7] = np.nan, np.nan, np.nan
    loss, _, gradient = map(np.asarray, run(name, p, logits, next_probs, rewards, discounts))
    assert np.isnan(loss[[1, 3, 5]]).all() and np.isfinite(loss[[0, 2, 4, 6]]).all()
    assert np.isfinite(gradient[[0, 2, 4, 6]]).all()
    assert name == "reference" or np.isnan(gradient[[1, 3, 5]]).all()


def test_a_logit_of_minus_infinity_adds_nothing_where_the_target_has_no_mass(name):
    p = kernels.TwoHot(-1.0, 1.0, 5)
    logits = np.zeros((9, 5), np.float32)
    logits[:, 0] = -np.inf
    next_probs = np.zeros_like(logits)
    next_probs[:8, 3] = next_probs[8, 0] = 1
    found = run(name, p, logits, next_probs, np.zeros(9, np.float32), np.ones(9, np.float32))
    np.testing.assert_allclose(found[0], [np.log(4)] * 8 + [np.inf], rtol=1e-6)
    assert np.isfinite(found[2][:8]).all()


@pytest.mark.parametrize(("batch", "num_bins"), [(4096, 51), (4096, 1001), (512, 8192)])
def test_memory_is_needed_for_one_block_of_rows_at_a_time(batch, num_bins):
    p, one = kernels.TwoHot(-10.0, 10.0, num_bins), jax.ShapeDtypeStruct((batch,), jnp.float32)
    whole = jax.ShapeDtypeStruct((batch, num_bins), jnp.float32)

    def loss(*arguments):
        return kernels.categorical_projection_cross_entropy(*arguments, p).mean()

    compiled = jax.jit(jax.value_and_grad(loss)).lower(whole, whole, one, one).compile()
    block = 4 * num_bins * xla.rows_of(num_bins, xla._FEW)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary <= 8 * block + 32 * batch < 4 * batch * num_bins


def test_only_the_logits_get_a_gradient():
    p, arguments = kernels.TwoHot(-10.7, 9.3, 51), sample(51)
    for name in ("reference", "xla"):

        def loss(rest, name=name):
            return kernels.categorical_projection_cross_entropy(
                arguments[0], *rest, p, implementation=name
            ).sum()

        for gradient in jax.grad(loss)(tuple(arguments[1:])):
            assert (gradient == 0).all()


LOGITS, PROBS, REWARDS, DISCOUNTS = sample(51)
TWO_HOT = kernels.TwoHot(-10.7, 9.3, 51)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (LOGITS, PROBS, REWARDS, DISCOUNTS, kernels.OneHot(0.0, 1.0, 51)),
            {},
            TypeError,
            "must be a TwoHot of",
        ),
        (
            (LOGITS, PROBS.astype(int), REWARDS, DISCOUNTS, TWO_HOT),
            {},
            TypeError,
            "next_probs must be floating",
        ),
        ((LOGITS[:, 1:], PROBS, REWARDS, DISCOUNTS, TWO_HOT), {}, ValueError, "fewer columns than TwoHot"),
        ((LOGITS, PROBS[:, 1:], REWARDS, DISCOUNTS, TWO_HOT), {}, ValueError, r"must have shape \(7, 51\)"),
        ((LOGITS, PROBS, REWARDS[1:], DISCOUNTS, TWO_HOT), {}, ValueError, r"rewards of shape \(6,\) do not"),
        (
            (LOGITS, PROBS, REWARDS, DISCOUNTS, TWO_HOT),
            {"weights": REWARDS[1:]},
            ValueError,
            "weights of shape",
        ),
        (
            (LOGITS, PROBS, REWARDS, DISCOUNTS, TWO_HOT),
            {"implementation": "x"},
            ValueError,
            "unknown implement",
        ),
    ],
)
@pytest.mark.untyped
def test_bad_arguments_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        kernels.categorical_projection_cross_entropy(*arguments, **options)
