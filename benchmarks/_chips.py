"""Compilers for chips that this machine need not have: TPUs through libtpu, the H100 through JAX's CUDA plugin.

The wheels, and which goes with which JAX, are in tests/kernels/aot/requirements.txt.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies

# libtpu would otherwise ask the network which TPU it is on; any one will do.
for _name, _value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}.items():
    os.environ.setdefault(_name, _value)

TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
CHIPS = (*TPUS, "H100")

_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 9 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


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
        platform="cuda", topology_name="h100", target_config=_H100, topology="1x1x1"
    )
    return list(topology.devices)


def compile_for(chip: str, function: Callable[..., Any], *arguments: jax.ShapeDtypeStruct) -> Any:
    """The compiled function of arrays on one such chip."""
    sharding = jax.sharding.SingleDeviceSharding(devices(chip)[0])
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in arguments]
    return jax.jit(function).lower(*placed).compile()
