"""Fused losses sharded over rows and over bins of four CPU devices. test_histogram_sharded.py runs this program."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlcls import heads, kernels
from rlcls.kernels.categorical_projection import xla
from rlcls.kernels.linear_histogram import mosaic_tpu
from rlcls.kernels.linear_histogram import xla as linear_xla

jax.config.update("jax_num_cpu_devices", 4)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # each runs once
mesh = jax.make_mesh((2, 2), ("data", "bins"), axis_types=(AxisType.Auto,) * 2)


def check(projection, padding, rows, columns, implementation):
    """Asserts that loss, lse and gradient under shard_map are those of one device."""
    num_bins = projection.num_bins
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, num_bins + padding)).astype(np.float32) * 3
    logits[:, num_bins:] = np.nan
    targets = np.array([-10.7, 9.3, 1e30, 0.1, 4.0, -3.0], np.float32)
    weights = jnp.arange(6, dtype=jnp.float32)

    def loss(logits, targets, weights, **options):
        value, lse = kernels.histogram_cross_entropy(
            logits, targets, projection, weights=weights, return_lse=True, **options
        )
        return value + lse / 2

    sharded = jax.shard_map(
        lambda x, t, w: loss(x, t, w, implementation=implementation, axis_name=columns),
        mesh=mesh,
        in_specs=(P(rows, columns), P(rows), P(rows)),
        out_specs=P(rows),
    )
    found = quick(jax.value_and_grad(lambda x: sharded(x, targets, weights).sum()))(
        jax.device_put(logits, NamedSharding(mesh, P(rows, columns)))
    )
    truth = quick(jax.value_and_grad(lambda x: loss(x, targets, weights, implementation="reference").sum()))(
        jnp.nan_to_num(logits)
    )
    np.testing.assert_allclose(found[0], truth[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], truth[1], atol=3e-6)


def check_linear(projection, implementation, rows, columns=None, padding=0):
    """`check` for a linear layer, where gradients of replicated arguments are summed over devices."""
    rng, width = np.random.default_rng(0), projection.num_bins + padding
    shapes = (8, 16), (16, width), width, 8
    features, kernel, bias, targets = (jnp.float32(rng.normal(size=shape)) for shape in shapes)

    def loss(features, kernel, bias, targets, **options):
        value, lse = kernels.linear_histogram_cross_entropy(
            features, kernel, bias, targets, projection, return_lse=True, **options
        )
        return value + lse / 2

    sharded = jax.shard_map(
        functools.partial(loss, implementation=implementation, axis_name=columns),
        mesh=mesh,
        in_specs=(P(rows), P(None, columns), P(columns), P(rows)),
        out_specs=P(rows),
    )
    layer = features, kernel, bias
    found, truth = (
        quick(jax.value_and_grad(lambda layer, total=total: total(*layer, targets).sum()))(layer)
        for total in (sharded, functools.partial(loss, implementation="reference"))
    )
    for value, right in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-5)


gaussian = kernels.Gaussian(-10.7, 9.3, 101, 0.75 * 20 / 101)
for implementation in ("xla", "cpu"):
    check(gaussian, 0, "data", None, implementation)
for rows, columns in ((None, "bins"), ("data", "bins"), (None, ("data", "bins"))):
    check(gaussian, 3, rows, columns, None)
check(kernels.TwoHot(-10.7, 9.3, 64), 0, "data", "bins", "xla")
check(gaussian, 303, None, ("data", "bins"), "xla")  # three of four devices have only padding
for function in ("forward", "backward"):
    original = getattr(mosaic_tpu, function)
    setattr(mosaic_tpu, function, functools.partial(original, interpret=pltpu.InterpretParams()))
for implementation in ("xla", "mosaic_tpu"):
    check_linear(gaussian, implementation, ("data", "bins"))
linear_xla.CHUNK = 32  # several chunks per device, whose last slice overlaps the one before
check_linear(gaussian, None, None, "bins", padding=3)
check_linear(gaussian, "xla", "data", "bins", padding=99)
check_linear(gaussian, None, None, ("data", "bins"), padding=303)


def check_projected(rows, columns=None, *, few=2**14, padding=0, dense=False):
    """`check` for a projected distribution. `few` sets the size of a block; `dense` compares instead of gathering."""
    projection, rng = kernels.TwoHot(-10.7, 9.3, 51), np.random.default_rng(0)
    logits = rng.normal(size=(64, 51 + padding)).astype(np.float32)
    probs = rng.dirichlet(np.ones(51), 64).astype(np.float32)
    scalars = rng.normal(size=64).astype(np.float32), rng.uniform(size=64).astype(np.float32)

    def gradient(loss):
        return quick(jax.value_and_grad(lambda *a: loss(*a).sum()))(logits, probs, *scalars)

    def loss(*arguments, **options):
        value, lse = kernels.categorical_projection_cross_entropy(
            *arguments, projection, return_lse=True, **options
        )
        return value + lse / 2

    xla._FEW = few

    def one_branch(*arrays, cpu, tpu, default):
        return (tpu if dense else cpu)(*arrays)

    with mock.patch.object(xla.lax, "platform_dependent", one_branch):
        sharded = jax.shard_map(
            functools.partial(loss, axis_name=columns),
            mesh=mesh,
            in_specs=(P(rows, columns), P(rows), P(rows), P(rows)),
            out_specs=P(rows),
        )
        found = gradient(sharded)
    truth = gradient(functools.partial(loss, implementation="reference"))
    np.testing.assert_allclose(found[0], truth[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], truth[1], atol=3e-6)


check_projected("data", few=1)
check_projected(("data", "bins"))
for dense in (False, True):
    check_projected("data", "bins", padding=1, dense=dense)
    check_projected(None, ("data", "bins"), few=1, padding=153, dense=dense)  # some devices have only padding


def check_refused(loss, words, **options):
    """Asserts that a loss that needs all bins on one device raises an error with these words."""
    shapes = jax.eval_shape(lambda: (jnp.zeros((8, 64)), jnp.zeros((8, 51)), jnp.zeros(8)))
    whole = jax.shard_map(
        lambda x, p, t: loss(x, p, t, axis_name="bins", **options), mesh=mesh, in_specs=P(), out_specs=P()
    )
    try:
        jax.eval_shape(whole, *shapes)
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"{options} raised no error")


uneven = heads.TwoHot(heads.Support.arbitrary((-1.0, 0.0, 2.0), on="centers")).projection
for name, projection, words in (
    ("cpu", gaussian, "cannot serve: bins sharded over devices are for 'xla'"),
    ("reference", gaussian, "cannot serve: bins sharded over devices are for 'xla'"),
    (None, uneven, "bins of IrregularTwoHot cannot be sharded"),
):
    options = {"projection": projection, "implementation": name}
    check_refused(lambda x, p, t, **o: kernels.histogram_cross_entropy(x, t, **o), words, **options)
    options["implementation"] = name and name.replace("cpu", "mosaic_tpu")
    check_refused(
        lambda x, p, t, **o: kernels.linear_histogram_cross_entropy(x, x.T @ x, None, t, **o),
        words,
        **options,
    )
check_refused(
    lambda x, p, t, **o: kernels.categorical_projection_cross_entropy(x, p, t, t, **o),
    "'reference' cannot serve: bins sharded over devices are for 'xla'",
    projection=kernels.TwoHot(-10.7, 9.3, 51),
    implementation="reference",
)
print("sharded")
