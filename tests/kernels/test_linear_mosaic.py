"""The Pallas backend of the loss of a linear layer, run by Pallas's interpreter on the CPU, against float64.

The tests in `aot/` compile it for the chips. No test runs it on a chip.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rlcls import kernels
from rlcls.kernels.histogram import dispatch
from rlcls.kernels.linear_histogram import mosaic_tpu

from .oracle import projections
from .test_linear_histogram import expected, layer, run

NARROW, WIDE = kernels.Gaussian(-10.7, 9.3, 300, 0.05), kernels.Gaussian(-10.7, 9.3, 300, 1.0)
# Small blocks: 300 bins are several blocks, the last with padding; 37 rows are three, the last not full.
SMALL = {"forward": (16, 128, 2**20), "backward": (16, 128, 2**19)}


@pytest.fixture
def interpreted(monkeypatch):
    """A function that makes the kernels run interpreted, with these sizes of blocks and this interpreter."""

    def use(blocks=None, interpret=True):
        for function in ("forward", "backward"):
            original = getattr(mosaic_tpu, function)
            monkeypatch.setattr(mosaic_tpu, function, functools.partial(original, interpret=interpret))
        if blocks is not None:
            monkeypatch.setattr(mosaic_tpu, "_BLOCKS", blocks)

    return use


def check(projection, arguments):
    """Asserts that loss, lse and every gradient are those of float64, and that the gradient of padding is 0."""
    bins = projection.num_bins
    features, kernel, bias, targets = arguments
    found = run("mosaic_tpu", projection, *arguments)
    truth = expected(projection, features, kernel[:, :bins], None if bias is None else bias[:bins], targets)
    for value, right, like in zip(found, truth, (targets, targets, *arguments[:3]), strict=True):
        if right is None:
            assert value is None
            continue
        assert value.dtype == jnp.float32 and value.shape == like.shape
        assert (value[..., right.shape[-1] :] == 0).all()
        np.testing.assert_allclose(value[..., : right.shape[-1]], right, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("num_bins", "batch", "kind"),
    [
        (2, 3, 1),
        (51, 37, 2),
        (1000, 9, 0),
        pytest.param(8192, 9, 2, marks=pytest.mark.slow),
        pytest.param(131_072, 7, 0, marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_those_of_float64(interpreted, num_bins, batch, kind):
    interpreted()
    features, kernel, bias, targets = layer(num_bins, batch=batch)
    check(projections(num_bins)[kind], (features, kernel, bias if num_bins != 51 else None, targets))


@pytest.mark.parametrize(
    "projection", [NARROW, WIDE, kernels.TwoHot(-10.7, 9.3, 300)], ids=["narrow", "wide", "two-hot"]
)
def test_blocks_of_rows_and_bins_with_a_rest_and_padding_of_nan(interpreted, projection):
    interpreted(SMALL)
    features, kernel, bias, targets = layer(300, padding=100, batch=37)
    kernel[:, 300:], bias[300:] = np.nan, np.nan
    check(projection, (features, kernel, bias, targets))


@pytest.mark.parametrize("narrow", ["all", "features"])
def test_bfloat16_layers_sum_in_float32(interpreted, narrow):
    interpreted()
    features, kernel, bias, targets = layer(300)
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in (features, kernel, bias)]
    if narrow == "features":
        arguments[1:] = kernel, bias
    truth = expected(NARROW, *(np.asarray(x, np.float64) for x in (*arguments, targets)))
    loss, lse, *gradients = run("mosaic_tpu", NARROW, *arguments, targets)
    assert loss.dtype == lse.dtype == jnp.float32
    np.testing.assert_allclose(loss, truth[0], rtol=1e-5)
    for gradient, right, of in zip(gradients, truth[2:], arguments, strict=True):
        assert gradient.dtype == of.dtype
        found = gradient.astype(np.float32)
        np.testing.assert_allclose(found, right, rtol=0.02, atol=0.02 * abs(right).max())


def test_a_nan_affects_only_its_own_row(interpreted):
    interpreted(SMALL)
    features, kernel, bias, targets = layer(300, batch=18)
    targets[4], features[7, 3] = np.nan, np.nan
    found = run("mosaic_tpu", NARROW, features, kernel, bias, targets)
    loss, lse, d_features = map(np.asarray, found[:3])
    assert np.isnan(loss[[4, 7]]).all() and np.isfinite(np.delete(loss, [4, 7])).all()
    assert np.isfinite(np.delete(lse, 7)).all()
    assert np.isnan(d_features[[4, 7]]).all() and np.isfinite(np.delete(d_features, [4, 7], 0)).all()


def test_nothing_is_read_before_it_is_written_and_there_are_no_races(interpreted):
    interpreter = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    interpreted(SMALL, interpreter)
    check(NARROW, layer(300, padding=3, batch=18))
    if not hasattr(
        interpreter, "on_race"
    ):  # newer JAX raises an error at a race; older JAX has no public way to ask
        from jax._src.pallas.mosaic.interpret import interpret_pallas_call

        assert not interpret_pallas_call.races.races_found


def test_the_kernel_under_vmap_equals_xla(interpreted):
    interpreted()
    features, kernel, bias, targets = layer(300, batch=12)
    features, targets = features.reshape(2, 6, 16), targets.reshape(2, 6)
    ensemble = np.stack([kernel, -kernel])

    def total(layer, targets, name):
        return kernels.linear_histogram_cross_entropy(
            *layer, targets, NARROW, weights=targets**0, implementation=name
        ).sum()

    def both(name):
        of_one = jax.value_and_grad(lambda x, w, t: total((x, w, bias), t, name), argnums=(0, 1))
        return jax.jit(jax.vmap(of_one))(features, ensemble, targets)

    for found, truth in zip(jax.tree.leaves(both("mosaic_tpu")), jax.tree.leaves(both("xla")), strict=True):
        np.testing.assert_allclose(found, truth, rtol=2e-5, atol=2e-5)


def test_unsupported_arguments_have_a_reason_in_one_line():
    def reason(batch=9, width=16, bins=300, dtype=np.float32):
        return mosaic_tpu.unsupported(batch, width, bins, np.dtype(dtype), NARROW)

    assert reason() is reason(8192, 1024, 131_072) is reason(2048, 4096, 131_072, jnp.bfloat16) is None
    assert "float32 or bfloat16, not float64" in reason(dtype=np.float64)
    assert "2**24" in reason(bins=2**24 + 1)
    assert reason(batch=0) == "mosaic_tpu needs at least one row and one feature, not 0 x 16"
    assert "at most 4096 wide, not 4097" in reason(width=4097)
    assert reason(8193, 1024).endswith("in VMEM, at most 32 MiB of float32: 8193 x 1024 take 33")
    features, kernel, bias, targets = layer(300)
    with pytest.raises(ValueError, match="'mosaic_tpu' cannot serve: mosaic_tpu takes .* not float16"):
        kernels.linear_histogram_cross_entropy(
            features.astype(np.float16),
            kernel.astype(np.float16),
            bias,
            targets,
            NARROW,
            implementation="mosaic_tpu",
        )


def test_the_kernel_is_chosen_above_a_threshold_if_it_supports_the_arguments(interpreted, monkeypatch):
    def chosen(kernel):
        program = jax.make_jaxpr(  # a new function each time, because make_jaxpr caches by function
            lambda *a: kernels.linear_histogram_cross_entropy(*a, NARROW)
        )
        return "pallas_call" in str(program(features, kernel, None, targets))

    interpreted()
    features, kernel, _, targets = layer(300)
    monkeypatch.setattr(dispatch, "_platform", lambda: "tpu")
    assert not chosen(kernel)
    row = dispatch.Threshold("tpu", "mosaic_tpu", bins=300, bytes=9 * 300 * 4)
    monkeypatch.setattr(dispatch, "LINEAR_THRESHOLDS", (row,))
    assert chosen(kernel)
    monkeypatch.setattr(mosaic_tpu, "_WIDEST", 15)
    assert not chosen(kernel)
