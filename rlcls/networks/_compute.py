"""Helpers that the networks share: dtypes, rematerialisation, captured activity, and checks of sizes."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from rlcls.kernels.arrays import at_least_float32

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str) -> Any:
    """The dtype in which layers compute. Parameters are always float32."""
    if name not in _DTYPES:
        raise ValueError(f"dtype must be {' or '.join(_DTYPES)}, not {name!r}")
    return _DTYPES[name]


def check_positive(**sizes: Any) -> None:
    """Raises a ValueError for the first size that is not a positive integer."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, not {size}")


def without_wraparound(index: Integer[Array, "..."], size: int) -> Int[Array, "..."]:
    """`index` with negative numbers replaced by `size`, so that a look-up with mode="fill" fills them too."""
    index = index.astype(jnp.int32)
    return jnp.where(index < 0, size, index)


def run(block: Any, x: Array, *, remat: bool) -> Array:
    """block(x). With `remat` the backward pass recomputes the activations inside the block."""
    # Values that are sown inside nnx.remat are lost, so a captured block runs without it.
    if not remat or block.capture:
        return block(x)
    return nnx.remat(lambda block, x: block(x))(block, x)


def relu(module: Any, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """ReLU(x). Also sows the activity of the layer if the module's `capture` is true."""
    x = nnx.relu(x)
    show_activity(module, x)
    return x


def show_activity(module: Any, x: Float[Array, "*b d"], samples: tuple[int, ...] | None = None) -> None:
    """Sows the mean absolute activation of each unit of a hidden layer, if the module's `capture` is true.

    Args:
      module: the module of the layer.
      x: activations after the nonlinearity.
      samples: the axes to average over; None means all but the last.
    """
    if module.capture:
        axes = tuple(range(x.ndim - 1)) if samples is None else samples
        activity = jnp.mean(jnp.abs(x.astype(jnp.float32)), axis=axes)
        module.sow(nnx.Intermediate, "activity", activity.reshape(-1))


def normalize(x: Float[Array, "..."], axis: int | tuple[int, ...] = -1) -> Float[Array, "..."]:
    """`x` divided by its L2 norm along `axis`, in at least float32. Zeros stay zeros, with a finite gradient."""
    x = at_least_float32(x)
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + 1e-6)
