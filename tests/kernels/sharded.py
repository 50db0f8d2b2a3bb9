"""Run by test_histogram_sharded.py, with four CPU devices: fused losses sharded over rows, and over bins."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlcls import kernels
from rlcls.kernels.categorical_projection import xla
from rlcls.kernels.linear_histogram import mosaic_tpu

jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((2, 2), ("data", "bins"), axis_types=(AxisType.Auto,) * 2)


def check(projection, padding, rows, columns, implementation):
    """Loss, lse and gradient under shard_map are those of one device."""
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
    found = jax.jit(jax.value_and_grad(lambda x: sharded(x, targets, weights).sum()))(
        jax.device_put(logits, NamedSharding(mesh, P(rows, columns)))
    )
    truth = jax.value_and_grad(lambda x: loss(x, targets, weights, implementation="reference").sum())(
        jnp.nan_to_num(logits)
    )
    np.testing.assert_allclose(found[0], truth[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], truth[1], atol=3e-6)


def check_linear(projection, implementation):
    """The same of a linear layer that every device has whole: its gradients are summed over the rows' devices."""
    rng = np.random.default_rng(0)
    shapes = (8, 16), (16, projection.num_bins), projection.num_bins, 8
    features, kernel, bias, targets = (jnp.float32(rng.normal(size=shape)) for shape in shapes)

    def loss(features, kernel, bias, targets, **options):
        return kernels.linear_histogram_cross_entropy(features, kernel, bias, targets, projection, **options)

    sharded = jax.shard_map(
        functools.partial(loss, implementation=implementation),
        mesh=mesh,
        in_specs=(P(("data", "bins")), P(), P(), P(("data", "bins"))),
        out_specs=P(("data", "bins")),
    )
    layer = features, kernel, bias
    found, truth = (
        jax.jit(jax.value_and_grad(lambda layer, total=total: total(*layer, targets).sum()))(layer)
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
check(gaussian, 303, None, ("data", "bins"), "xla")  # three of four devices hold padding alone
for function in ("forward", "backward"):
    original = getattr(mosaic_tpu, function)
    setattr(mosaic_tpu, function, functools.partial(original, interpret=pltpu.InterpretParams()))
for implementation in ("xla", "mosaic_tpu"):
    check_linear(gaussian, implementation)


def check_projected(rows, few):
    """So it is with a distribution that moves, in blocks of few rows or at once."""
    projection, rng = kernels.TwoHot(-10.7, 9.3, 51), np.random.default_rng(0)
    logits, probs = rng.normal(size=(64, 51)).astype(np.float32), rng.dirichlet(np.ones(51), 64)
    scalars = rng.normal(size=64).astype(np.float32), rng.uniform(size=64).astype(np.float32)

    def gradient(loss):
        arguments = logits, probs.astype(np.float32), *scalars
        return jax.jit(jax.value_and_grad(lambda *a: loss(*a).sum()))(*arguments)

    def loss(*arguments, name="xla"):
        return kernels.categorical_projection_cross_entropy(*arguments, projection, implementation=name)

    xla._FEW = few
    sharded = jax.shard_map(loss, mesh=mesh, in_specs=(P(rows),) * 4, out_specs=P(rows))
    found, truth = gradient(sharded), gradient(functools.partial(loss, name="reference"))
    np.testing.assert_allclose(found[0], truth[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], truth[1], atol=3e-6)


check_projected("data", 1)
check_projected(("data", "bins"), 2**14)
print("sharded")
