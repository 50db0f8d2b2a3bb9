"""Code shared by the NNX, Linen and Haiku modules, so that equal weights give equal outputs in each of them."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._arrays import check_finite, check_integer
from .base import Head
from .transforms import TRANSFORMS

INIT_SCALE = 1 / math.sqrt(3)  # Dopamine's C51


def check_options(head: Head, num_actions: int, init_scale: float, bias_slope: float) -> None:
    """Raises an error if an option of a module has a wrong type or is out of range."""
    if not isinstance(head, Head):
        raise TypeError(f"head must be a heads.Head, such as heads.make gives, not {head!r}")
    check_integer("num_actions", num_actions, 1)
    for argument, value in (("init_scale", init_scale), ("bias_slope", bias_slope)):
        if check_finite(argument, value) < 0:
            raise ValueError(f"{argument} must not be negative, not {value}")


def initial_bias(head: Head, slope: float, copies: int) -> Float[np.ndarray, " n"]:
    """The initial bias of the last layer: -slope * |center| for every bin, repeated `copies` times.

    This puts the probability mass of an untrained network near 0. The biases of a head without bins are 0. A Q head has
    one copy for each action. Centers are squashed if the support has a transform.

    Source: Cohen et al. 2025 (Simulus), whose released code has a slope of 0.2 on bins in symlog space.
    """
    support: Any = getattr(head, "support", None)
    if support is None or not slope:
        return np.zeros(copies * head.num_outputs)
    # Centers of unequal bins are squashed back to equal steps, because symexp centers reach 5e8.
    centers = TRANSFORMS[support.bin_transform].forward(support.centers)
    return np.tile(-slope * np.abs(centers), copies)


def per_action(
    advantages: Float[Array, "*b an"], state: Float[Array, "*b n"] | None, num_actions: int
) -> Float[Array, "*b a n"]:
    """The outputs of every action: the advantages, or with dueling state + advantage - mean of advantage over actions.

    Source: Wang et al. 2016, equation 9.
    """
    outputs = advantages.reshape((*advantages.shape[:-1], num_actions, -1))
    if state is None:
        return outputs
    return jnp.expand_dims(state, -2) + (outputs - outputs.mean(-2, keepdims=True))
