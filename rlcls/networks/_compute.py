"""What the networks share about arithmetic: its dtype, what is kept for the backward pass, sizes that are possible."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Integer

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str) -> Any:
    """The dtype that layers compute in; their parameters stay float32."""
    if name not in _DTYPES:
        raise ValueError(f"dtype must be {' or '.join(_DTYPES)}, not {name!r}")
    return _DTYPES[name]


def check_positive(**sizes: Any) -> None:
    """Raises a ValueError at the first that is no positive integer."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, not {size}")


def check_choice(**chosen: Any) -> None:
    """Raises a ValueError at the first `name=(value, possible values)` that is none of the possible ones."""
    for name, (value, possible) in chosen.items():
        if value not in possible:
            raise ValueError(f"{name} must be one of {', '.join(map(str, possible))}, not {value}")


def without_wraparound(index: Integer[Array, "..."], size: int) -> Int[Array, "..."]:
    """`index`, for a look-up that answers NaN beyond `size`, which would take negative ones from the end."""
    index = index.astype(jnp.int32)
    return jnp.where(index < 0, size, index)


def run(block: Any, x: Array, *, remat: bool) -> Array:
    """block(x); with `remat` what is inside it is computed again for the backward pass rather than kept."""
    # What a module shows cannot leave a computation that may run twice.
    if not remat or block.capture:
        return block(x)
    return nnx.remat(lambda block, x: block(x))(block, x)


def relu(module: Any, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The ReLU of x, a hidden layer's; a module whose `capture` is true shows how active its units are."""
    x = nnx.relu(x)
    show_activity(module, x)
    return x


def show_activity(module: Any, x: Float[Array, "*b d"], samples: tuple[int, ...] | None = None) -> None:
    """Shows, where the module's `capture` is true, the mean absolute activation of each unit of a hidden layer.

    Args:
      module: whose layer it is.
      x: after the nonlinearity.
      samples: the axes that are no units; all but the last where none are given.
    """
    if module.capture:
        axes = tuple(range(x.ndim - 1)) if samples is None else samples
        activity = jnp.mean(jnp.abs(x.astype(jnp.float32)), axis=axes)
        module.sow(nnx.Intermediate, "activity", activity.reshape(-1))


def normalize(x: Float[Array, "..."], axis: int | tuple[int, ...] = -1) -> Float[Array, "..."]:
    """x over its L2 norm along `axis`, in float32 at least; zeros stay zeros and have a gradient."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + 1e-6)
