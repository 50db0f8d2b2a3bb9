"""Compiles functions with options for this device, and caches the compiled programs."""

from __future__ import annotations

import enum
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Key

from rlcls._errors import UserError, install

# This option makes XLA's CPU compiler call a library for convolutions and matrix products, which makes convolutions up
# to 1.7 times as fast. Each product is a call of its own, because fusing a whole network into one call is slower.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` with the compiler options that suit the default device.

    Options are set for each function and never through XLA_FLAGS, where an unknown name aborts the process.
    """
    return jax.jit(function, compiler_options=_options(), **options)


@functools.cache
def _options() -> dict[str, str] | None:
    default = jax.config.values["jax_default_device"]
    if (default.platform if default else jax.default_backend()) != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except Exception as error:  # its type has changed between releases
        name = next(iter(_CPU_OPTIONS))
        warnings.warn(
            f"this JAX does not know {name}; updates will be slower ({str(error)[:80]})", stacklevel=2
        )
        return None
    return _CPU_OPTIONS


class Use(enum.IntEnum):
    """The purposes of random numbers. A run's key is folded with them, and the seeds of environments contain them.

    A run repeats and resumes in the same bits only while these numbers stay the same.
    """

    INIT = 0
    ACT = 1
    UPDATE = 2
    EVALUATION = 3
    ENVIRONMENT = 4
    COLLECTION = 5
    SAMPLE = 6
    NOISE = 7


def keys(seed: int, *uses: Use) -> list[Key[Array, ""]]:
    """A random key for each use, from the key of `seed`. JAX_TRANSFER_GUARD does not forbid the transfer of keys."""
    with jax.transfer_guard("allow"):
        key = jax.random.key(seed)
        return [jax.random.fold_in(key, int(use)) for use in uses]


def cache_compilations() -> None:
    """Keeps compiled programs between runs, in $XDG_CACHE_HOME/rlcls or the folder that JAX is configured with.

    Programs are compiled again in every run if that folder cannot be written.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlcls" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a user without a home, or with one that cannot be written
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def choose_device(name: str | None) -> jax.Device:
    """Makes a device of that kind ("cpu", "gpu", "tpu") the default; None leaves JAX its choice.

    Raises:
      UserError: JAX finds no such device, cannot start the one that JAX_PLATFORMS names, or does not promote dtypes.
    """
    promotion = jax.config.values["jax_numpy_dtype_promotion"]
    if promotion != "standard":
        raise UserError(
            f"JAX_NUMPY_DTYPE_PROMOTION={promotion}: optax needs standard, since it multiplies floats with counts"
        )
    if name == "cpu":
        # This must precede the first use of JAX, which would otherwise look for accelerators.
        jax.config.update("jax_platforms", "cpu")
    try:
        platforms = sorted({device.platform for device in jax.devices()})
    except (RuntimeError, AssertionError) as error:  # JAX asserts where a library finds no device
        asked, reason = jax.config.values["jax_platforms"], str(error).partition(" (set JAX_PLATFORMS")[0]
        raise UserError(
            f"JAX_PLATFORMS={asked}: JAX finds no such device{f' ({reason})' if reason else ''}; JAX_PLATFORMS=cpu "
            "always works, and without the variable JAX takes the fastest device that it finds"
        ) from error
    try:
        device = jax.local_devices(backend=name)[0]
    except RuntimeError as error:
        raise UserError(
            f"device={name} was asked for and JAX finds none (it finds {', '.join(platforms)}); "
            f"install it with {install('cuda' if name == 'gpu' else str(name))}"
        ) from error
    if name:
        jax.config.update("jax_default_device", device)
    return device
