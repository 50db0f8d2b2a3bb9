"""Adds bins to a trained output layer."""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from rlcls.kernels.arrays import namespace

from ._arrays import check_integer


def pad_outputs(
    kernel: Float[ArrayLike, "*d o"],
    bias: Float[ArrayLike, " o"],
    num_bins: int,
    low_bins: int,
    high_bins: int,
    *,
    fill: float = -1e4,
) -> tuple[Float[Any, "*d p"], Float[Any, " p"]]:
    """The weights of an output layer for `Support.extend(low_bins, high_bins)`; the network's values do not change.

    The last axis holds one or more groups of `num_bins` outputs, one group for each action. Each group gets new outputs
    with weight 0 and bias `fill`, to which a softmax gives no mass. Pad both layers of a dueling head. Pad the moments
    of an optimiser with fill=0.

    Every step of Adam moves a bias by about the learning rate, so a new bin with a bias of -1e4 is hardly learned. Pad
    with fill=-20 if targets will fall into the new bins; this changes values by about 1e-9 of the range.

    Raises:
      ValueError: the last axes differ, or are not a multiple of num_bins.
    """
    num_bins = check_integer("pad_outputs: num_bins", num_bins, 2)
    pads = (
        check_integer("pad_outputs: low_bins", low_bins, 0),
        check_integer("pad_outputs: high_bins", high_bins, 0),
    )
    shapes = jnp.shape(kernel), jnp.shape(bias)
    if not all(shapes) or shapes[0][-1] != shapes[1][-1] or shapes[1][-1] % num_bins:
        raise ValueError(
            f"pad_outputs: kernel {shapes[0]} and bias {shapes[1]} must have one last axis, "
            f"a multiple of num_bins = {num_bins}"
        )

    def pad(x: Any, value: float) -> Any:
        xp = namespace(x)
        x = xp.asarray(x)
        groups = xp.reshape(x, (*x.shape[:-1], -1, num_bins))
        padded = xp.pad(groups, [(0, 0)] * (groups.ndim - 1) + [pads], constant_values=value)
        return padded.reshape((*x.shape[:-1], -1))

    return pad(kernel, 0.0), pad(bias, fill)
