"""The last layer of a network, as Haiku modules: from features to the outputs of a head."""

import haiku as hk
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._modules import INIT_SCALE, check_options, initial_bias, per_action
from .base import Head


class QHead(hk.Module):
    """A layer from features to the head's outputs for every action.

    With equal weights, the outputs are those of `heads.nnx.QHead`. The parameters are "advantage": {"w", "b"}, and
    with dueling also "state".

    Args:
      head: the value head that reads the outputs.
      num_actions: at least 1.
      dueling: two streams, `state` and `advantage`, instead of `advantage` alone.
      init_scale: variance of the weights times the number of features; 0 makes every output 0.
      bias_slope: the bias of a bin starts at -bias_slope * |center|; with dueling, only in `state`. Simulus uses 0.2.
        Heads without bins ignore it.
      name: name of the Haiku module.

    Raises:
      ValueError: num_actions, init_scale or bias_slope is out of range.
      TypeError: one of them, or `head`, has a wrong type.

    Source: Wang et al. 2016, equation 9 (dueling).
    """

    def __init__(
        self,
        head: Head,
        num_actions: int,
        dueling: bool = False,
        init_scale: float = INIT_SCALE,
        bias_slope: float = 0.0,
        name: str | None = None,
    ):
        super().__init__(name=name)
        check_options(head, num_actions, init_scale, bias_slope)
        self.head, self.num_actions, self.dueling = head, num_actions, dueling
        self.init_scale, self.bias_slope = init_scale, bias_slope

    # The layers are made in __call__: Haiku adds "~" to the names of layers that are made in __init__.
    def __call__(self, features: Float[Array, "*b d"]) -> Float[Array, "*b a n"]:
        slope = 0.0 if self.dueling else self.bias_slope
        advantages = _linear(self.head, self.num_actions, self.init_scale, slope, "advantage")(features)
        state = None
        if self.dueling:
            state = _linear(self.head, 1, self.init_scale, self.bias_slope, "state")(features)
        return per_action(advantages, state, self.num_actions)


class ValueHead(hk.Module):
    """A layer from features to the head's outputs for the state. The arguments are those of `QHead`."""

    def __init__(
        self, head: Head, init_scale: float = INIT_SCALE, bias_slope: float = 0.0, name: str | None = None
    ):
        super().__init__(name=name)
        check_options(head, 1, init_scale, bias_slope)
        self.head, self.init_scale, self.bias_slope = head, init_scale, bias_slope

    def __call__(self, features: Float[Array, "*b d"]) -> Float[Array, "*b n"]:
        return _linear(self.head, 1, self.init_scale, self.bias_slope, "state")(features)


def _linear(head: Head, copies: int, scale: float, slope: float, name: str) -> hk.Linear:
    weights = hk.initializers.Constant(0)
    if scale:
        weights = hk.initializers.VarianceScaling(scale, "fan_in", "uniform")
    bias = initial_bias(head, slope, copies)
    return hk.Linear(
        copies * head.num_outputs,
        w_init=weights,
        b_init=lambda shape, dtype: jnp.asarray(bias, dtype),
        name=name,
    )
