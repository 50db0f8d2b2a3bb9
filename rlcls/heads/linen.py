"""The last layer of a network, as flax Linen modules: from features to the outputs of a head."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ._modules import INIT_SCALE, check_options, initial_bias, per_action
from .base import Head


class QHead(nn.Module):
    """A layer from features to the head's outputs for every action.

    With equal weights, the outputs are those of `heads.nnx.QHead`. The parameters are {"advantage": {"kernel",
    "bias"}}, and with dueling also "state".

    Attributes:
      head: the value head that reads the outputs.
      num_actions: at least 1.
      dueling: two streams, `state` and `advantage`, instead of `advantage` alone.
      init_scale: variance of the weights times the number of features; 0 makes every output 0.
      bias_slope: the bias of a bin starts at -bias_slope * |center|; with dueling, only in `state`. Simulus uses 0.2.
        Heads without bins ignore it.

    Raises:
      ValueError: when called, if num_actions, init_scale or bias_slope is out of range.
      TypeError: when called, if one of them, or `head`, has a wrong type.

    Source: Wang et al. 2016, equation 9 (dueling).
    """

    head: Head
    num_actions: int
    dueling: bool = False
    init_scale: float = INIT_SCALE
    bias_slope: float = 0.0

    @nn.compact
    def __call__(self, features: Float[Array, "*b d"]) -> Float[Array, "*b a n"]:
        check_options(self.head, self.num_actions, self.init_scale, self.bias_slope)
        slope = 0.0 if self.dueling else self.bias_slope
        advantages = _dense(self.head, self.num_actions, self.init_scale, slope, "advantage")(features)
        state = None
        if self.dueling:
            state = _dense(self.head, 1, self.init_scale, self.bias_slope, "state")(features)
        return per_action(advantages, state, self.num_actions)


class ValueHead(nn.Module):
    """A layer from features to the head's outputs for the state. The attributes are those of `QHead`."""

    head: Head
    init_scale: float = INIT_SCALE
    bias_slope: float = 0.0

    @nn.compact
    def __call__(self, features: Float[Array, "*b d"]) -> Float[Array, "*b n"]:
        check_options(self.head, 1, self.init_scale, self.bias_slope)
        return _dense(self.head, 1, self.init_scale, self.bias_slope, "state")(features)


def _dense(head: Head, copies: int, scale: float, slope: float, name: str) -> nn.Dense:
    kernel = nn.initializers.zeros_init()
    if scale:
        kernel = nn.initializers.variance_scaling(scale, "fan_in", "uniform")
    bias = initial_bias(head, slope, copies)

    def bias_init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jnp.asarray(bias, dtype)

    return nn.Dense(copies * head.num_outputs, kernel_init=kernel, bias_init=bias_init, name=name)
