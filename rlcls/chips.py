"""Devices that this machine need not have, for JAX's ahead-of-time compilers: TPU slices, and machines of H100s."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax

from rlcls._errors import UserError, install, nearest

TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
"""libtpu would otherwise ask the network which TPU it is on; any one will do."""
H100 = """
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
"""What XLA's compiler for GPUs asks a device for."""
GIB = 1 << 30
_MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "h100": 79}
"""GiB of each device, by chip."""
_GPUS_OF_A_MACHINE = 8


class Target(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: as it was asked for, such as "v5e:2x2".
      devices: of the compiler.
      memory: bytes of one device.
    """

    name: str
    devices: list[Any]
    memory: int


def target(name: str) -> Target:
    """The devices that a name such as v5e:2x2, v6e:2x4, v4:2x2x1 or h100:8 stands for.

    A TPU slice is named by its chip and its shape, H100s by their number: up to eight, or machines of eight.

    Raises:
      UserError: the name is none of these, the compiler does not know the shape, or a package is missing.
    """
    chip, _, shape = name.partition(":")
    if chip not in _MEMORY:
        raise UserError(f"target={name}: unknown chip {chip!r}{nearest(chip, _MEMORY)}")
    if not re.fullmatch(r"[1-9]\d*" if chip == "h100" else r"[1-9]\d*(x[1-9]\d*)+", shape):
        example = "h100:8, the number of GPUs" if chip == "h100" else f"{chip}:2x2, the shape of the slice"
        raise UserError(f"target={name}: expected such as {example}")
    return Target(name, _gpus(name, int(shape)) if chip == "h100" else _tpus(name), _MEMORY[chip] * GIB)


def _tpus(name: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"target={name}: TPU programs are compiled by libtpu, which comes with {install('tpu')}"
        )
    for variable, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    return _topology(name, platform="tpu", topology_name=name)


def _gpus(name: str, count: int) -> list[Any]:
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise UserError(
            f"target={name}: jax-cuda12-plugin and jax-cuda12-pjrt compile programs for GPUs; install both in the "
            f"version of jax, {jax.__version__}"
        )
    machines, rest = divmod(count, _GPUS_OF_A_MACHINE)
    if machines > 1 and rest:
        raise UserError(f"target={name}: expected at most 8 GPUs, or machines of 8 (h100:16, h100:24, ...)")
    shape = f"1x{machines}x8" if machines > 1 else f"1x1x{count}"
    return _topology(name, platform="cuda", topology_name="h100", target_config=H100, topology=shape)


def _topology(name: str, **options: str) -> list[Any]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(**options).devices)
    except Exception as error:  # XLA has errors of many types
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"target={name}: the compiler knows no such devices ({reason[:160]})") from error
