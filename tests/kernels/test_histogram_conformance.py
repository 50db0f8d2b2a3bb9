"""Every implementation of the fused cross-entropy against float64, and against the others."""

import dataclasses

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls import kernels
from rlcls.kernels.histogram import dispatch

from .oracle import SPECIAL, cross_entropy, histogram, projections

PLATFORMS = {"mosaic_tpu": "tpu", "mosaic_gpu": "gpu"}


def skip_elsewhere(name):
    platform = PLATFORMS.get(name, jax.default_backend())
    return pytest.mark.skipif(jax.default_backend() != platform, reason=f"{name} runs on a {platform}")


EVERY = [pytest.param(name, marks=skip_elsewhere(name)) for name in dispatch.IMPLEMENTATIONS]
FUSED = [parameter for parameter in EVERY if parameter.values != ("reference",)]


def run(name, projection, logits, targets):
    """Loss, lse, and the gradient of the sum of (row number * loss + lse / 2)."""
    factors = jnp.arange(1, len(targets) + 1, dtype=jnp.float32)

    @jax.jit
    def both(logits, targets):
        def total(logits):
            loss, lse = kernels.histogram_cross_entropy(
                logits, targets, projection, weights=factors, return_lse=True, implementation=name
            )
            return (loss + lse / 2).sum(), (loss / factors, lse)

        (_, found), gradient = jax.value_and_grad(total, has_aux=True)(logits)
        return *found, gradient

    return both(logits, targets)


def expected(projection, logits, targets):
    loss, lse, gradient, softmax = cross_entropy(logits, histogram(projection, targets))
    factors = np.arange(1, len(targets) + 1)[:, None]
    return loss, lse, factors * gradient + softmax / 2


def sample(num_bins, batch, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch, num_bins)).astype(np.float32) * 3
    inside = rng.uniform(-10.7, 9.3, max(batch - len(SPECIAL), 0))
    return logits, np.r_[SPECIAL, inside][:batch].astype(np.float32)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("num_bins", [2, 51, 101, 1000, 8192, 131_072])
def test_values_and_gradients_are_those_of_float64(name, num_bins):
    logits, targets = sample(num_bins, 9 if num_bins < 131_072 else 7)
    for projection in projections(num_bins):
        truth = expected(projection, logits, targets)
        loss, lse, gradient = run(name, projection, logits, targets)
        assert loss.dtype == lse.dtype == gradient.dtype == jnp.float32
        np.testing.assert_allclose(loss, truth[0], atol=6e-6, rtol=1e-6)
        np.testing.assert_allclose(lse, truth[1], rtol=1e-6)
        np.testing.assert_allclose(gradient, truth[2], atol=5e-6)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("num_bins", [1000])
def test_with_bfloat16_logits_only_the_gradient_is_rounded(name, num_bins):
    logits, targets = sample(num_bins, 7)
    logits = jnp.asarray(logits, jnp.bfloat16)
    for projection in projections(num_bins):
        truth = expected(projection, logits.astype(jnp.float32), targets)
        loss, lse, gradient = run(name, projection, logits, targets)
        assert gradient.dtype == jnp.bfloat16 and loss.dtype == lse.dtype == jnp.float32
        np.testing.assert_allclose(loss, truth[0], atol=6e-6, rtol=1e-6)
        np.testing.assert_allclose(gradient.astype(jnp.float32), truth[2], rtol=2**-8, atol=2e-5)


@pytest.mark.parametrize("name", ["reference", "xla", "cpu"])
@pytest.mark.parametrize("num_bins", [51, 1000])
def test_float64_logits_stay_float64(name, num_bins):
    logits, targets = sample(num_bins, 9)
    with jax.enable_x64(True):
        logits, targets = jnp.asarray(logits, jnp.float64), jnp.asarray(targets, jnp.float64)
        for projection in projections(num_bins):
            found = run(name, projection, logits, targets)
            for value, truth in zip(found, expected(projection, logits, targets), strict=True):
                assert value.dtype == jnp.float64
                np.testing.assert_allclose(value, truth, atol=1e-11)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("num_bins", [51, 101])
def test_columns_beyond_the_bins_are_ignored(name, num_bins):
    logits, targets = sample(num_bins, 5)
    for projection in projections(num_bins)[:: num_bins // 50]:
        bare = run(name, projection, logits, targets)
        padding = np.full((5, 128 - num_bins), [[np.nan], [np.inf], [1e30], [-np.inf], [0]], np.float32)
        loss, lse, gradient = run(name, projection, np.concatenate([logits, padding], 1), targets)
        np.testing.assert_allclose(loss, bare[0], rtol=1e-6)
        np.testing.assert_allclose(lse, bare[1], rtol=1e-6)
        np.testing.assert_allclose(gradient[:, :num_bins], bare[2], atol=1e-5)
        assert (gradient[:, num_bins:] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_masked_bin_adds_nothing_where_the_target_has_no_mass(name):
    logits, _ = sample(101, 1)
    logits[:, :20] = -np.inf
    for projection in projections(101):
        targets = np.array([5.0], np.float32)
        loss, _, gradient = run(name, projection, logits, targets)
        assert np.isfinite(loss).all() and np.isfinite(gradient).all() and (gradient[:, :20] == 0).all()
        assert np.isposinf(run(name, projection, logits, np.array([-10.0], np.float32))[0]).all()


@pytest.mark.parametrize("name", FUSED)
def test_vmap_and_leading_dimensions_give_the_same(name):
    logits, targets = sample(101, 24, seed=1)
    logits, targets = logits.reshape(2, 3, 4, 101), targets.reshape(2, 3, 4)
    projection = projections(101)[0]

    def loss(logits, targets):
        return kernels.histogram_cross_entropy(logits, targets, projection, implementation=name)

    def gradient(logits, targets):
        return jax.grad(lambda x: jnp.nansum(loss(x, targets)))(logits)

    whole = jax.jit(loss)(logits, targets)
    assert whole.shape == targets.shape
    flat = run(name, projection, logits.reshape(24, 101), targets.reshape(24))[0]
    np.testing.assert_allclose(whole.reshape(24), flat, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(logits, targets), whole, rtol=1e-6)
    one_by_one = jax.jit(jax.vmap(jax.vmap(gradient)))(logits, targets)
    np.testing.assert_allclose(one_by_one, jax.jit(gradient)(logits, targets), atol=1e-6)


def test_targets_get_no_gradient_and_can_have_any_real_dtype():
    logits, projection = jnp.ones((2, 51)), projections(51)[0]
    for name in ("reference", "xla", "cpu"):

        def loss(targets, name=name):
            return kernels.histogram_cross_entropy(logits, targets, projection, implementation=name).sum()

        assert (jax.grad(loss)(jnp.array([0.3, -2.0])) == 0).all()
        assert loss(np.array([1, 2])) == loss(np.array([1.0, 2.0], np.float16)) == loss(jnp.array([1.0, 2.0]))


NARROW, WIDE = projections(1000)[0], projections(1000)[2]
jitted = {
    (name, p): jax.jit(lambda x, t, name=name, p=p: run(name, p, x, t))
    for name in ("reference", "xla", "cpu")
    for p in (NARROW, WIDE)
}


@pytest.mark.parametrize("projection", [NARROW, WIDE], ids=["narrow", "wide"])
@given(
    targets=hnp.arrays(np.float32, 4, elements=st.floats(width=32, allow_nan=False)),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    offset=st.sampled_from([0.0, -1e3, 1e3]),
)
@settings(max_examples=40)
def test_implementations_agree_and_no_loss_is_below_the_entropy(projection, targets, seed, spread, offset):
    logits = (np.random.default_rng(seed).normal(size=(4, 1000)) * spread + offset).astype(np.float32)
    loss, lse, gradient = jitted["reference", projection](logits, targets)
    probs = projection.encode(targets).astype(np.float64)
    entropy = -np.sum(probs * np.log(np.where(probs > 0, probs, 1)), axis=-1)
    for name in ("xla", "cpu"):
        found = jitted[name, projection](logits, targets)
        # The reference computes the log-softmax of logits around 1000 with an error of 1e-4.
        np.testing.assert_allclose(found[0], loss, rtol=1e-5, atol=3e-4 if offset else 1e-5)
        np.testing.assert_allclose(found[1], lse, rtol=1e-6, atol=1e-6)
        # The backward pass uses lse in float32, so its softmax has a relative error of 1e-7 * |lse|.
        np.testing.assert_allclose(found[2], gradient, atol=1e-5 + 1e-6 * abs(np.asarray(lse)).max())
        assert (found[0] > entropy - 1e-4).all()


@pytest.mark.parametrize(("num_bins", "batch"), [(1001, 256), (8192, 64)])
def test_the_cpu_implementation_needs_no_memory_for_bins(num_bins, batch):
    projection = kernels.Gaussian(-10.0, 10.0, num_bins, 0.75 * 20 / num_bins)
    logits = jax.ShapeDtypeStruct((batch, num_bins), jnp.float32)
    targets = jax.ShapeDtypeStruct((batch,), jnp.float32)

    def loss(logits, targets):
        return kernels.histogram_cross_entropy(logits, targets, projection, implementation="cpu").mean()

    compiled = jax.jit(jax.value_and_grad(loss)).lower(logits, targets).compile()
    # A few arrays of the band's twelve columns.
    assert compiled.memory_analysis().temp_size_in_bytes <= 300 * batch


@pytest.mark.parametrize(
    "projection",
    [*projections(51)[:2], *projections(101)[:1], kernels.IrregularTwoHot.between([0.0, 1.0, 5.0])],
)
def test_the_default_equals_the_chosen_implementation_by_name(projection):
    logits, targets = jnp.ones((3, projection.num_bins)), jnp.zeros(3)
    chosen = dispatch.choose(None, logits.shape, logits.dtype, projection)
    assert chosen == ("cpu" if projection.num_bins > 64 else "reference")
    by_default = kernels.histogram_cross_entropy(logits, targets, projection)
    by_name = kernels.histogram_cross_entropy(logits, targets, projection, implementation=chosen)
    np.testing.assert_array_equal(by_default, by_name)


def test_a_threshold_selects_the_kernel_for_large_logits_and_xla_for_small_ones(monkeypatch):
    rows = (dispatch.Threshold("tpu", "cpu", bins=2048, bytes=64e6),)
    monkeypatch.setattr(dispatch, "THRESHOLDS", rows)
    monkeypatch.setattr(dispatch, "_platform", lambda: "tpu")
    projection = projections(8192)[0]
    dtype = jnp.dtype("float32")
    assert dispatch.choose(None, (2048, 8192), dtype, projection) == "cpu"
    assert dispatch.choose(None, (1024, 8192), dtype, projection) == "xla"
    assert dispatch.choose(None, (10**6, 1000), dtype, projections(1000)[0]) == "xla"
    monkeypatch.setattr(dispatch.backend("cpu"), "unsupported", lambda *_: "not today")
    assert dispatch.choose(None, (2048, 8192), dtype, projection) == "xla"
    with pytest.raises(ValueError, match="'cpu' cannot serve: not today"):
        dispatch.choose("cpu", (2048, 8192), dtype, projection)


def test_the_platform_is_that_of_the_default_device():
    assert dispatch._platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert dispatch._platform() == "cpu"
    with jax.default_device("cpu"):
        assert dispatch._platform() == "cpu"


LOGITS, TARGETS, GAUSSIAN = np.zeros((3, 51), np.float32), np.zeros(3, np.float32), projections(51)[0]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((LOGITS.astype(int), TARGETS), {}, TypeError, "logits must be floating point, not int"),
        ((LOGITS, TARGETS * 1j), {}, TypeError, "targets must be real, not complex64"),
        (
            (LOGITS, TARGETS[:2]),
            {},
            ValueError,
            r"targets of shape \(2,\) do not match logits of shape \(3, 51\)",
        ),
        (
            (LOGITS[:, :50], TARGETS),
            {},
            ValueError,
            r"logits of shape \(3, 50\) have fewer columns than Gauss",
        ),
        ((LOGITS, TARGETS), {"weights": TARGETS[:1]}, ValueError, r"weights of shape \(1,\) do not match"),
        ((LOGITS, TARGETS), {"implementation": "pu"}, ValueError, "unknown implementation 'pu'; .* 'cpu'"),
    ],
)
@pytest.mark.untyped
def test_bad_arguments_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        kernels.histogram_cross_entropy(*arguments, GAUSSIAN, **options)


@pytest.mark.untyped
def test_unequal_bins_need_the_reference():
    uneven = kernels.IrregularTwoHot.between([0.0, 1.0, 5.0])
    with pytest.raises(ValueError, match="'xla' cannot serve: IrregularTwoHot is for 'reference'"):
        kernels.histogram_cross_entropy(np.zeros((3, 3), np.float32), TARGETS, uneven, implementation="xla")
    assert dataclasses.is_dataclass(uneven)
