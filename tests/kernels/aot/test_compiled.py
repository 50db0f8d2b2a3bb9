"""The fused losses compiled for TPUs and the H100, on a machine that has neither.

python -m pip install -r tests/kernels/aot/requirements.txt
python -m pytest tests/kernels/aot
"""

import functools
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import _chips
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rlcls import kernels

pytestmark = pytest.mark.aot


def on(chip, *values):
    reason = _chips.missing(chip)
    skip = pytest.mark.skipif(reason is not None, reason=f"NOT COMPILED FOR {chip.upper()}: {reason}")
    return pytest.param(chip, *values, marks=skip)


OWN = {"H100": "mosaic_gpu"} | dict.fromkeys(_chips.TPUS, "mosaic_tpu")
PALLAS = [on(chip) for chip in _chips.CHIPS]
# Compiling plain XLA for a TPU takes 5 s, so it is done for one TPU only.
EVERY = [*(on(chip, OWN[chip]) for chip in _chips.CHIPS), on("v5e", "xla"), on("H100", "xla")]


def gaussian(num_bins, deviations):
    return kernels.Gaussian(-10.7, 9.3, num_bins, deviations * 20 / num_bins)


def value_and_gradient(projection, name):
    def mean(logits, targets):
        return kernels.histogram_cross_entropy(logits, targets, projection, implementation=name).mean()

    return jax.value_and_grad(mean)


def shapes(batch, columns, dtype):
    return jax.ShapeDtypeStruct((batch, columns), dtype), jax.ShapeDtypeStruct((batch,), jnp.float32)


@pytest.mark.parametrize(("chip", "name"), EVERY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("batch", "projection"),
    [(8192, gaussian(8192, 0.75)), (1024, gaussian(131_072, 0.75)), (1024, gaussian(131_072, 1000.0))],
    ids=["8192", "131072", "131072-wide"],
)
def test_temporary_memory_does_not_grow_with_bins(chip, name, dtype, batch, projection):
    arguments = shapes(batch, projection.num_bins, jnp.dtype(dtype))
    memory = _chips.compile_for(chip, value_and_gradient(projection, name), *arguments).memory_analysis()
    # On a TPU a table of a few numbers per row is padded to 128 numbers, 512 bytes; there are at most six tables.
    assert memory.temp_size_in_bytes <= 6 * 512 * batch + 2**18
    logits = batch * projection.num_bins * jnp.dtype(dtype).itemsize
    assert logits <= memory.output_size_in_bytes <= logits + 2**16


@pytest.mark.parametrize("chip", PALLAS)
@pytest.mark.parametrize(
    ("batch", "columns", "projection"),
    [
        (1, 2, kernels.TwoHot(0.0, 1.0, 2)),
        (5, 51, gaussian(51, 0.75)),
        (37, 1003, gaussian(1001, 0.75)),
        (67, 1003, gaussian(1001, 20.0)),
        (67, 9003, kernels.OneHot(0.0, 1.0, 9001)),
    ],
    ids=["2", "51", "1001", "1001-wide", "9001"],
)
def test_any_number_of_rows_and_bins(chip, batch, columns, projection):
    if chip == "H100":
        columns += -columns % 128
    for dtype in (jnp.float32, jnp.bfloat16):
        run = value_and_gradient(projection, OWN[chip])
        _chips.compile_for(chip, run, *shapes(batch, columns, dtype))


@pytest.mark.parametrize("chip", PALLAS)
def test_an_ensemble_under_vmap(chip):
    logits, targets = shapes(64, 8192, jnp.float32)
    three = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in (logits, targets)]
    run = jax.vmap(value_and_gradient(gaussian(8192, 0.75), OWN[chip]))
    text = _chips.compile_for(chip, run, *three).as_text()
    assert text.count("custom-call(") >= 2


@pytest.mark.parametrize("chip", [on(chip) for chip in _chips.TPUS])
def test_rows_sharded_over_four_chips_communicate_only_for_the_mean(chip):
    mesh = jax.sharding.Mesh(np.array(_chips.devices(chip)), ("batch",))
    spec = P("batch")
    run = value_and_gradient(gaussian(8192, 0.75), OWN[chip])

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec, spec), out_specs=(P(), spec))
    def spread(logits, targets):
        value, gradient = run(logits, targets)
        return jax.lax.pmean(value, "batch"), gradient

    sharding = jax.sharding.NamedSharding(mesh, spec)
    arguments = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in shapes(256, 8192, jnp.float32)
    ]
    text = jax.jit(spread).lower(*arguments).compile().as_text()
    gathered = re.findall(r"= \S+ (all-gather|all-to-all|collective-permute)\(", text)
    assert not gathered and len(re.findall(r"= \S+ all-reduce(?:-start)?\(", text)) <= 1


def linear_value_and_gradient(projection, name):
    def mean(features, kernel, bias, targets):
        return kernels.linear_histogram_cross_entropy(
            features, kernel, bias, targets, projection, implementation=name
        ).mean()

    return jax.value_and_grad(mean, argnums=(0, 1, 2))


def linear_shapes(batch, width, columns, dtype):
    layer = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((batch, width), (width, columns), (columns,))]
    return *layer, jax.ShapeDtypeStruct((batch,), jnp.float32)


@pytest.mark.parametrize(
    ("chip", "dtype", "batch", "width", "deviations"),
    [
        on("v5e", "float32", 1024, 512, 0.75),
        # The largest number of rows, and the widest rows, that the kernel supports.
        on("v5p", "float32", 8192, 1024, 0.75),
        on("v5p", "bfloat16", 2048, 4096, 1000.0),
        on("v6e", "bfloat16", 4096, 1024, 0.75),
    ],
)
def test_the_logits_of_a_linear_layer_are_never_in_memory(chip, dtype, batch, width, deviations):
    run = linear_value_and_gradient(gaussian(131_072, deviations), "mosaic_tpu")
    arguments = linear_shapes(batch, width, 131_072, jnp.dtype(dtype))
    memory = _chips.compile_for(chip, run, *arguments).memory_analysis()
    # Tables as above, and the gradients of features and bias in float32, but no logits and no copy of the kernel.
    assert memory.temp_size_in_bytes <= 6 * 512 * batch + 4 * batch * width + 2**22
    results = sum(math.prod(x.shape) * x.dtype.itemsize for x in arguments[:3])
    assert results <= memory.output_size_in_bytes <= results + 2**20


@pytest.mark.parametrize("chip", [on("H100")])
def test_a_linear_layer_by_plain_xla_takes_chunks_of_logits(chip):
    run = linear_value_and_gradient(gaussian(131_072, 0.75), "xla")
    arguments = linear_shapes(1024, 1024, 131_072, jnp.bfloat16)
    memory = _chips.compile_for(chip, run, *arguments).memory_analysis()
    assert memory.temp_size_in_bytes <= 4 * 4 * 1024 * 8192  # a few float32 chunks of [1024, 8192]


@pytest.mark.parametrize("chip", [on(chip) for chip in _chips.TPUS])
def test_a_linear_layer_of_any_size_precision_and_ensemble(chip):
    for deviations, dtype, precision in (
        (0.75, jnp.float32, None),
        (20.0, jnp.bfloat16, None),
        (0.75, jnp.float32, "highest"),
        (0.75, jnp.bfloat16, "highest"),
    ):
        with jax.default_matmul_precision(precision):
            run = linear_value_and_gradient(gaussian(1001, deviations), "mosaic_tpu")
            _chips.compile_for(chip, run, *linear_shapes(37, 24, 1003, dtype))
    three = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in linear_shapes(64, 256, 8192, jnp.float32)]
    run = jax.vmap(linear_value_and_gradient(gaussian(8192, 0.75), "mosaic_tpu"))
    assert _chips.compile_for(chip, run, *three).as_text().count("custom-call(") >= 2


@pytest.mark.parametrize("chip", [on("v5e"), on("H100")])
@pytest.mark.parametrize(("batch", "num_bins"), [(4096, 51), (4096, 1001), (1024, 8192)])
def test_a_projected_distribution_needs_memory_for_one_block_of_rows(chip, batch, num_bins):
    projection = kernels.TwoHot(-10.0, 10.0, num_bins)

    def mean(*arguments):
        return kernels.categorical_projection_cross_entropy(*arguments, projection).mean()

    logits, scalars = shapes(batch, num_bins, jnp.float32)
    run = jax.value_and_grad(mean)
    memory = _chips.compile_for(chip, run, logits, logits, scalars, scalars).memory_analysis()
    # Three arrays of 2**18 floats and a few numbers per row. On a TPU the arrays stay in VMEM, which is not counted.
    assert memory.temp_size_in_bytes <= (3 * 2**20 if chip == "H100" else 2**19) + 64 * batch


SPILLS = """
    import sys
    import jax.numpy as jnp
    import _chips, test_compiled as here

    for dtype in (jnp.float32, jnp.bfloat16):
        for projection in (here.gaussian(131_072, 0.75), here.gaussian(131_072, 1000.0), here.gaussian(1001, 0.75)):
            columns = projection.num_bins + -projection.num_bins % 128
            run = here.value_and_gradient(projection, "mosaic_gpu")
            _chips.compile_for("H100", run, *here.shapes(1024, columns, dtype))
"""


@pytest.mark.parametrize("chip", [on("H100")])
def test_no_register_is_spilled(chip, tmp_path):
    # The compiler reads MOSAIC_GPU_DUMP_TO once per process, so this needs a new process.
    paths = [Path(_chips.__file__).parent, Path(__file__).parent, *sys.path]
    environment = {
        **os.environ,
        "MOSAIC_GPU_DUMP_TO": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    subprocess.run([sys.executable, "-c", textwrap.dedent(SPILLS)], env=environment, check=True)
    reports = [path.read_text() for path in tmp_path.glob("*.ptxas")]
    assert len(reports) == 12  # forward and backward
    for report in reports:
        assert re.findall(r"(\d+) bytes spill (?:stores|loads)", report) == ["0", "0"]
        assert "sm_90a" in report
