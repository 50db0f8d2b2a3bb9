"""Compilers for chips that this machine need not have: TPUs through libtpu, the H100 through JAX's CUDA plugin.

tests/kernels/aot/requirements.txt lists the wheels for each release of JAX.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies

from rlcls.chips import H100, TPU_ENVIRONMENT

for _name, _value in TPU_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
CHIPS = (*TPUS, "H100")


def missing(chip: str) -> str | None:
    """What to install to compile for the chip, or None."""
    if chip in TPUS:
        return None if importlib.util.find_spec("libtpu") else "libtpu is not installed"
    if jax.__version_info__ < (0, 11):
        return f"the kernels for GPUs need JAX 0.11 or newer, not {jax.__version__}"
    found = importlib.util.find_spec("jax_cuda12_plugin")
    return None if found else "jax-cuda12-plugin is not installed"


@functools.cache
def devices(chip: str) -> list[Any]:
    """Devices to compile for: four TPUs, or one GPU."""
    if chip in TPUS:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=TPUS[chip]).devices)
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
    )
    return list(topology.devices)


def compile_for(chip: str, function: Callable[..., Any], *arguments: jax.ShapeDtypeStruct) -> Any:
    """Compiles the function for arrays on one such chip."""
    sharding = jax.sharding.SingleDeviceSharding(devices(chip)[0])
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in arguments]
    return jax.jit(function).lower(*placed).compile()
