"""The Pallas backends of the fused cross-entropy, run by Pallas's interpreters on the CPU, against float64.

The tests in `aot/` compile them for the chips. No test runs them on a chip.
"""

import functools
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rlcls import kernels
from rlcls.kernels.histogram import dispatch, mosaic_gpu, mosaic_tpu

from .oracle import SPECIAL, cross_entropy, histogram, projections

# Each interpreted kernel runs once, so it is compiled quickly.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
GPU_IS_INTERPRETED = jax.__version_info__ >= (0, 11)
BOTH = [
    pytest.param(mosaic_tpu, id="mosaic_tpu"),
    pytest.param(
        mosaic_gpu,
        id="mosaic_gpu",
        marks=pytest.mark.skipif(
            not GPU_IS_INTERPRETED, reason=f"JAX {jax.__version__} cannot interpret Mosaic GPU; JAX 0.11 can"
        ),
    ),
]
NARROW, WIDE = kernels.Gaussian(-10.7, 9.3, 300, 0.05), kernels.Gaussian(-10.7, 9.3, 300, 1.0)


def run(backend, projection, logits, targets, interpret=True):
    """Loss, lse, and the gradient of the sum of (row number * loss + lse / 2)."""
    columns = logits.shape[1]
    # Padding of NaN: any number of columns for the TPU, and a row length that is a multiple of 128 for the GPU.
    more = 3 if backend is mosaic_tpu else -columns % 128
    logits = jnp.pad(logits, ((0, 0), (0, more)), constant_values=jnp.nan)
    assert backend.unsupported(*logits.shape, logits.dtype, projection) is None
    loss, lse = quick(lambda x, t: backend.forward(x, t, projection, interpret=interpret))(logits, targets)
    factors = jnp.arange(1, len(targets) + 1, dtype=jnp.float32)
    gradient = quick(lambda *a: backend.backward(*a, projection, interpret=interpret))(
        logits, targets, lse, factors, jnp.full_like(factors, 0.5)
    )
    assert loss.dtype == lse.dtype == jnp.float32 and gradient.dtype == logits.dtype
    assert (gradient[:, columns:] == 0).all()
    return np.asarray(loss), np.asarray(lse), np.asarray(gradient[:, :columns].astype(jnp.float32))


def check(found, projection, logits, targets, *, rounding=0.0):
    with np.errstate(over="ignore"):
        loss, lse, gradient, softmax = cross_entropy(logits, histogram(projection, targets))
    factors = np.arange(1, len(targets) + 1)[:, None]
    np.testing.assert_allclose(found[0], loss, atol=6e-6, rtol=1e-6)
    np.testing.assert_allclose(found[1], lse, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(found[2] / factors, gradient + softmax / 2 / factors, atol=2e-6, rtol=rounding)


def sample(num_bins, batch, seed=0):
    """Logits, and targets that begin with `SPECIAL`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch, num_bins)).astype(np.float32) * 3
    return logits, np.r_[SPECIAL, rng.uniform(-11, 10, batch)][:batch].astype(np.float32)


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(
    ("num_bins", "batch"),
    # 67 rows are two blocks on a TPU. 9001 bins are several blocks and tiles, the last of them not full.
    [
        (2, 7),
        (51, 67),
        (101, 7),
        (1000, 9),
        (8192, 7),
        (9001, 7),
        pytest.param(131_072, 7, marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_those_of_float64(backend, num_bins, batch):
    logits, targets = sample(num_bins, batch)
    kinds = projections(num_bins)
    if num_bins == 9001:
        kinds = [kinds[0], kernels.Gaussian(-10.7, 9.3, 9001, 0.9)]
    for projection in kinds:
        check(run(backend, projection, logits, targets), projection, logits, targets)


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("projection", [NARROW, WIDE], ids=["narrow", "wide"])
def test_with_bfloat16_logits_only_the_gradient_is_rounded(backend, projection):
    logits, targets = sample(300, 7)
    logits = jnp.asarray(logits, jnp.bfloat16)
    found = run(backend, projection, logits, targets)
    check(found, projection, logits.astype(jnp.float32), targets, rounding=2**-8)


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("projection", [NARROW, WIDE], ids=["narrow", "wide"])
def test_a_loss_of_large_logits_is_as_accurate(backend, projection):
    """Logits plus these offsets are exact in float32, so the loss should be equal up to rounding."""
    logits, targets = sample(300, 5)
    logits = (np.round(logits * 2**9) / 2**9).astype(np.float32)
    loss, _, gradient = run(backend, projection, logits, targets)
    for offset in (-768.0, 12288.0):
        moved = run(backend, projection, logits + np.float32(offset), targets)
        np.testing.assert_allclose(moved[0], loss, rtol=2e-6, atol=2e-6)
        # The softmax is computed from lse, whose rounding error grows with the logits.
        np.testing.assert_allclose(moved[2], gradient, atol=abs(offset) * 1e-7)


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("projection", [NARROW, WIDE], ids=["narrow", "wide"])
def test_a_logit_of_minus_infinity_adds_nothing_where_the_target_has_no_mass(backend, projection):
    logits, _ = sample(300, 2)
    logits[:, :40] = -np.inf
    targets = np.array([9.0, -10.5], np.float32)
    loss, _, gradient = run(backend, projection, logits, targets)
    assert (gradient[:, :40] <= 0).all() and (gradient[0, :40] == 0).all()
    assert np.isfinite(loss[0]) and np.isposinf(loss[1]) and np.isfinite(gradient).all()


@pytest.mark.parametrize("backend", BOTH)
def test_a_nan_affects_only_its_own_row(backend):
    logits, targets = sample(300, 5)
    targets[:] = 1.0
    for projection in (NARROW, WIDE):
        clean = run(backend, projection, logits, targets)
        dirty_logits, dirty_targets = logits.copy(), targets.copy()
        dirty_logits[1, 17], dirty_targets[3] = np.nan, np.nan
        loss, lse, gradient = run(backend, projection, dirty_logits, dirty_targets)
        for found, whole in zip((loss, lse, gradient), clean, strict=True):
            np.testing.assert_array_equal(found[[0, 2, 4]], whole[[0, 2, 4]])
            assert np.isnan(found[1]).all()
        assert np.isnan(loss[3]) and np.isnan(gradient[3]).all() and lse[3] == clean[1][3]


@pytest.mark.parametrize("backend", BOTH)
def test_the_public_function_under_vmap_equals_xla(backend, monkeypatch):
    name = backend.__name__.rpartition(".")[2]
    for function in ("forward", "backward"):
        monkeypatch.setattr(backend, function, functools.partial(getattr(backend, function), interpret=True))
    logits, targets = sample(384, 10)
    logits, targets = logits.reshape(2, 5, 384), targets.reshape(2, 5)
    projection = kernels.Gaussian(-10.7, 9.3, 300, 0.05)

    def total(logits, targets, name):
        loss, lse = kernels.histogram_cross_entropy(
            logits, targets, projection, weights=targets**0, return_lse=True, implementation=name
        )
        return jnp.nansum(loss) + lse.sum(), (loss, lse)

    of_one = jax.value_and_grad(total, has_aux=True)
    found = jax.jit(jax.vmap(lambda x, t: of_one(x, t, name)))(logits, targets)
    truth = jax.jit(jax.vmap(lambda x, t: of_one(x, t, "xla")))(logits, targets)
    for value, expected in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6)


def interpreters():
    yield mosaic_tpu, pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    if GPU_IS_INTERPRETED:
        yield mosaic_gpu, mosaic_gpu.plgpu.InterpretGPUParams(detect_races=True)


@pytest.mark.parametrize("projection", [NARROW, WIDE], ids=["narrow", "wide"])
def test_nothing_is_read_before_it_is_written_and_there_are_no_races(projection):
    logits, targets = sample(300, 18)
    for backend, interpreter in interpreters():
        check(run(backend, projection, logits, targets, interpreter), projection, logits, targets)
        if not hasattr(
            interpreter, "on_race"
        ):  # newer JAX raises an error at a race; older JAX has no public way to ask
            from jax._src.pallas.mosaic.interpret import interpret_pallas_call

            assert not interpret_pallas_call.races.races_found


SHARDED = """
    import functools, importlib, json, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import PartitionSpec as P
    from rlcls import kernels

    jax.config.update("jax_num_cpu_devices", 4)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    projection = kernels.Gaussian(-10.0, 10.0, 128, 0.1)
    rng = np.random.default_rng(0)
    logits, targets = jnp.float32(rng.normal(size=(12, 128))), jnp.float32(rng.uniform(-9, 9, 12))

    def gradient(name, logits, targets):
        def total(logits):
            loss = kernels.histogram_cross_entropy(logits, targets, projection, implementation=name)
            return loss.sum(), loss
        (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(logits)
        return loss, gradient

    errors = {}
    for name in sys.argv[1:]:
        backend = importlib.import_module("rlcls.kernels.histogram." + name)
        if name == "mosaic_tpu":
            interpret = importlib.import_module("jax.experimental.pallas.tpu").InterpretParams()
        else:
            interpret = True
        backend.forward = functools.partial(backend.forward, interpret=interpret)
        backend.backward = functools.partial(backend.backward, interpret=interpret)
        spread = jax.shard_map(
            functools.partial(gradient, name), mesh=mesh, in_specs=(P("batch"), P("batch")), out_specs=P("batch")
        )
        pairs = zip(jax.jit(spread)(logits, targets), gradient("xla", logits, targets))
        errors[name] = [float(abs(found - truth).max()) for found, truth in pairs]
    print(json.dumps(errors))
"""


def test_a_shard_map_over_the_batch_gives_the_same():
    names = ["mosaic_tpu"] + ["mosaic_gpu"] * GPU_IS_INTERPRETED
    command = [sys.executable, "-c", textwrap.dedent(SHARDED), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert list(errors) == names and max(map(max, errors.values())) < 2e-6


def test_unsupported_arguments_have_a_reason_in_one_line(monkeypatch):
    float32 = np.dtype(np.float32)
    assert mosaic_tpu.unsupported(5, 51, float32, NARROW) is None
    assert "float32 or bfloat16, not float64" in mosaic_tpu.unsupported(5, 51, np.dtype(np.float64), NARROW)
    assert "2**24" in mosaic_tpu.unsupported(5, 2**24 + 1, float32, NARROW)
    with pytest.raises(ValueError, match="cannot serve: mosaic_tpu takes logits of float32 or bfloat16"):
        dispatch.choose("mosaic_tpu", (5, 51), np.dtype(np.float16), NARROW)

    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "needs JAX 0.11" in mosaic_gpu.unsupported(5, 128, float32, NARROW)
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    assert mosaic_gpu.unsupported(5, 128, float32, NARROW) is None
    assert "a multiple of 128 logits (pad them), not of 51" in mosaic_gpu.unsupported(5, 51, float32, NARROW)
    assert "not float16" in mosaic_gpu.unsupported(5, 128, np.dtype(np.float16), NARROW)
    monkeypatch.setattr(mosaic_gpu, "plgpu", None)
    monkeypatch.setattr(mosaic_gpu, "_missing", "No module named 'absl'")
    assert "No module named 'absl'" in mosaic_gpu.unsupported(5, 128, float32, NARROW)
