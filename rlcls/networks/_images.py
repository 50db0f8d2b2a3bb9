"""Helpers of the networks for images: the check of the shape, and the conversion of uint8 frames to NHWC."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8


def check_image_shape(network: str, shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    """The shape as a tuple. Raises a ValueError unless it is (frames, height, width) with sides >= `smallest`."""
    shape = tuple(shape)
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < smallest:
        other = "; backbone=mlp or backbone=states takes vectors" if len(shape) == 1 else ""
        raise ValueError(
            f"{network} takes observations of shape (frames, height, width), "
            f"at least {smallest} high and wide, not {shape}{other}"
        )
    return shape


def to_nhwc(observations: UInt8[Array, "b f h w"], shape: tuple[int, int, int]) -> Float[Array, "b h w f"]:
    """The frames as channels, scaled to [0, 1]."""
    if observations.ndim != 4 or observations.shape[1:] != shape:
        raise ValueError(
            f"observations must have shape (batch, {', '.join(map(str, shape))}), not {observations.shape}"
        )
    if observations.dtype != jnp.uint8:
        raise TypeError(f"observations must be uint8, not {observations.dtype}")
    # The transpose moves bytes, not floats, which is a quarter of the traffic. Without the barrier XLA would transpose
    # again for every use in the forward and backward pass.
    moved = lax.optimization_barrier(jnp.transpose(observations, (0, 2, 3, 1)))
    return moved.astype(jnp.float32) * (1 / 255)
