"""The cross-entropy of a linear layer against the same from its logits, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls import kernels
from rlcls.kernels.linear_histogram import xla

from .oracle import cross_entropy, histogram, projections


def layer(num_bins, padding=0, batch=9, width=16, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(batch, width))
    kernel = rng.normal(size=(width, num_bins + padding))
    bias = rng.normal(size=num_bins + padding)
    targets = np.r_[-10.7, 9.3, 1e30, rng.uniform(-10.7, 9.3, batch - 3)]
    return [x.astype(np.float32) for x in (features, kernel, bias, targets)]


def run(name, projection, features, kernel, bias, targets):
    """Loss, lse, and the gradients of the sum of (row number * loss + lse / 2)."""
    factors = jnp.arange(1, len(targets) + 1, dtype=jnp.float32)

    @jax.jit
    def total(layer):
        loss, lse = kernels.linear_histogram_cross_entropy(
            *layer, targets, projection, weights=factors, return_lse=True, implementation=name
        )
        return (loss + lse / 2).sum(), (loss / factors, lse)

    (_, found), gradients = jax.value_and_grad(total, has_aux=True)((features, kernel, bias))
    return *found, *gradients


def expected(projection, features, kernel, bias, targets):
    features, kernel = np.asarray(features, np.float64), np.asarray(kernel, np.float64)
    logits = features @ kernel + (0 if bias is None else bias)
    loss, lse, gradient, softmax = cross_entropy(logits, histogram(projection, targets))
    d_logits = np.arange(1, len(targets) + 1)[:, None] * gradient + softmax / 2
    d_bias = None if bias is None else d_logits.sum(0)
    return loss, lse, d_logits @ kernel.T, features.T @ d_logits, d_bias


@pytest.mark.parametrize("chunk", [64, 101, 8192])
@pytest.mark.parametrize("kind", [0, 1])
def test_chunks_of_any_size_give_values_and_gradients_of_float64(monkeypatch, chunk, kind):
    monkeypatch.setattr(xla, "CHUNK", chunk)
    arguments, projection = layer(101), projections(101)[kind]
    truth = expected(projection, *arguments)
    for found, right in zip(run("xla", projection, *arguments), truth, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, right, rtol=2e-5, atol=1e-4)


def test_the_reference_and_many_bins_equal_float64():
    for name, num_bins in (("reference", 101), (None, 20_000)):
        arguments, projection = layer(num_bins), projections(num_bins)[0]
        truth = expected(projection, *arguments)
        for found, right in zip(run(name, projection, *arguments), truth, strict=True):
            np.testing.assert_allclose(found, right, rtol=2e-5, atol=1e-4)


def test_padding_and_a_missing_bias(monkeypatch):
    monkeypatch.setattr(xla, "CHUNK", 64)
    projection = projections(101)[0]
    features, kernel, _, targets = layer(101, padding=50)
    bare = run("xla", projection, features, kernel[:, :101], None, targets)
    kernel[:, 101:] = np.nan  # the contents of padding are ignored
    *padded, d_bias = run("xla", projection, features, kernel, None, targets)
    assert d_bias is None and bare[-1] is None
    for found, right in zip(padded[:3], bare[:3], strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(padded[3][:, :101], bare[3], rtol=1e-5, atol=1e-5)
    assert (padded[3][:, 101:] == 0).all()


def test_bfloat16_layers_sum_in_float32():
    projection = projections(1000)[0]
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in layer(1000)[:3]] + [layer(1000)[3]]
    truth = expected(projection, *(np.asarray(x, np.float64) for x in arguments))
    loss, lse, *gradients = run("xla", projection, *arguments)
    assert loss.dtype == lse.dtype == jnp.float32
    np.testing.assert_allclose(loss, truth[0], rtol=1e-5)
    for gradient, right in zip(gradients, truth[2:], strict=True):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            gradient.astype(np.float32), right, rtol=0.02, atol=0.02 * abs(right).max()
        )


def test_a_nan_target_makes_only_its_own_loss_nan():
    features, kernel, bias, targets = layer(101)
    targets[4] = np.nan
    loss, lse, d_features, *_ = run("xla", projections(101)[0], features, kernel, bias, targets)
    assert np.isnan(loss[4]) and np.isfinite(np.delete(loss, 4)).all() and np.isfinite(lse).all()
    assert np.isnan(d_features[4]).all() and np.isfinite(np.delete(d_features, 4, 0)).all()


def test_vmap_and_leading_dimensions_give_the_same():
    features, kernel, bias, targets = layer(101, batch=12)
    projection = projections(101)[0]

    def loss(features, targets):
        return kernels.linear_histogram_cross_entropy(features, kernel, bias, targets, projection)

    flat, shaped = jax.jit(loss)(features, targets), (features.reshape(3, 4, 16), targets.reshape(3, 4))
    np.testing.assert_allclose(jax.jit(loss)(*shaped).reshape(12), flat, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*shaped).reshape(12), flat, rtol=1e-5)


def test_the_logits_are_never_in_memory(monkeypatch):
    monkeypatch.setattr(xla, "CHUNK", 2048)
    projection = kernels.Gaussian(-10.0, 10.0, 65_536, 0.01)
    shapes = [(512, 64), (64, 65_536), (65_536,), (512,)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(features, kernel, bias, targets):
        return kernels.linear_histogram_cross_entropy(features, kernel, bias, targets, projection).mean()

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*arguments).compile()
    chunk, layers = 4 * 512 * xla.CHUNK, 4 * 64 * (65_536 + 512)
    assert compiled.memory_analysis().temp_size_in_bytes <= 5 * chunk + 3 * layers < 4 * 512 * 65_536


FEATURES, KERNEL, BIAS, TARGETS = layer(51)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (FEATURES.astype(int), KERNEL, BIAS, TARGETS),
            {},
            TypeError,
            "features must be floating point, not int",
        ),
        (
            (FEATURES[:, :3], KERNEL, BIAS, TARGETS),
            {},
            ValueError,
            r"does not fit features of shape \(9, 3\)",
        ),
        (
            (FEATURES, KERNEL, BIAS[:3], TARGETS),
            {},
            ValueError,
            r"bias of shape \(3,\) does not fit a kernel",
        ),
        ((FEATURES, KERNEL, BIAS, TARGETS[:3]), {}, ValueError, r"targets of shape \(3,\) do not match"),
        ((FEATURES, KERNEL[:, :9], None, TARGETS), {}, ValueError, "has fewer columns than Gaussian"),
        ((FEATURES, KERNEL, BIAS, TARGETS), {"weights": BIAS}, ValueError, r"weights of shape \(51,\)"),
        (
            (FEATURES, KERNEL, BIAS, TARGETS),
            {"implementation": "cpu"},
            ValueError,
            "unknown implementation 'cpu'",
        ),
    ],
)
@pytest.mark.untyped
def test_bad_arguments_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        kernels.linear_histogram_cross_entropy(*arguments, projections(51)[0], **options)


@pytest.mark.untyped
def test_unequal_bins_need_the_reference():
    uneven = kernels.IrregularTwoHot.between([0.0, 1.0, 5.0])
    arguments = FEATURES, KERNEL[:, :3], None, TARGETS
    assert kernels.linear_histogram_cross_entropy(*arguments, uneven).shape == (9,)
    with pytest.raises(ValueError, match="'xla' cannot serve: IrregularTwoHot is for 'reference'"):
        kernels.linear_histogram_cross_entropy(*arguments, uneven, implementation="xla")
