"""Every head on four devices. test_sharded.py runs this as a program: JAX fixes the number of devices at its start."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlcls import heads

QUICK = {"xla_backend_optimization_level": 0}  # every compiled program runs once
RANGE = {"vmin": -3, "vmax": 3, "num_bins": 11}


def all_heads():
    for name, kind in heads.BY_NAME.items():
        yield heads.make(name, **(RANGE if issubclass(kind, heads.CategoricalHead) else {}))
    # The CPU uses another implementation from 65 bins on.
    yield heads.make("hlgauss", **RANGE | {"num_bins": 101})
    yield heads.make("two_hot", **RANGE | {"num_bins": 101}, implementation="xla")
    yield heads.make("c51", **RANGE, bin_transform="symlog", criterion="ordinal")
    yield heads.make("hlgauss", **RANGE, scalar_transform="symlog", criterion="generalised")


def everything(head):
    def compute(outputs, next_outputs, rewards):
        target = head.td_target(next_outputs, rewards, 0.9 + 0 * rewards)
        gradient = jax.grad(lambda o: head.td_loss(o, target).sum())(outputs)
        return gradient, head.td_divergence(outputs, target), head.loss(outputs, rewards)

    return compute


def main():
    assert jax.device_count() == 4, jax.devices()
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("batch")
    sharding = NamedSharding(mesh, spec)
    random = np.random.default_rng(0)
    for head in all_heads():
        outputs = random.normal(size=(2, 8, 3, head.num_outputs)).astype(np.float32)
        arguments = (*outputs, random.uniform(-1, 1, (8, 3)).astype(np.float32))
        compute = everything(head)
        expected = jax.jit(compute, compiler_options=QUICK)(*arguments)
        spread = jax.device_put(arguments, sharding)
        mapped = jax.shard_map(compute, mesh=mesh, in_specs=spec, out_specs=spec)
        for form, function in (("shard_map", mapped), ("jit", compute)):
            compiled = jax.jit(function).lower(*spread).compile(QUICK)
            for result, wanted in zip(compiled(*spread), expected, strict=True):
                assert result.sharding.is_equivalent_to(sharding, result.ndim), (head, form, result.sharding)
                np.testing.assert_allclose(result, wanted, rtol=2e-6, atol=1e-6, err_msg=f"{head} {form}")
            # Rows are independent, so devices exchange nothing.
            for operation in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
                assert operation not in compiled.as_text(), (head, form, operation)
        print(head.name)


if __name__ == "__main__":
    main()
