"""The last layer of a network, as flax NNX modules: from features to the outputs of a head."""

from flax import nnx
from jaxtyping import Array, Float

from ._modules import INIT_SCALE, check_options, initial_bias, per_action
from .base import Head


class QHead(nnx.Module):
    """A layer from features to the head's outputs for every action.

    Weights are drawn from U(-l, l), l = sqrt(3 * init_scale / in_features), as in Dopamine's C51. With biases of
    0, the default, init_scale=0 makes every output 0. With `dueling`, outputs = state + advantage - mean of advantage
    over actions. For categorical heads these are logits.

    Args:
      head: the value head that reads the outputs.
      in_features: size of the features' last axis.
      num_actions: at least 1.
      dueling: two streams, `state` and `advantage`, instead of `advantage` alone.
      init_scale: variance of the weights times in_features; not negative.
      bias_slope: the bias of a bin starts at -bias_slope * |center|; with dueling, only in `state`. Not negative.
        Simulus uses 0.2. Heads without bins ignore it.

    Raises:
      ValueError: num_actions, init_scale or bias_slope is out of range.
      TypeError: one of them, or `head`, has a wrong type.

    Source: Wang et al. 2016, equation 9 (dueling).
    """

    def __init__(
        self,
        head: Head,
        in_features: int,
        num_actions: int,
        *,
        dueling: bool = False,
        init_scale: float = INIT_SCALE,
        bias_slope: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_options(head, num_actions, init_scale, bias_slope)
        self.num_actions = num_actions
        slope = 0.0 if dueling else bias_slope
        self.advantage = _linear(head, in_features, num_actions, init_scale, slope, rngs)
        self.state = _linear(head, in_features, 1, init_scale, bias_slope, rngs) if dueling else None

    def __call__(self, features: Float[Array, "*b d"]) -> Float[Array, "*b a n"]:
        state = None if self.state is None else self.state(features)
        return per_action(self.advantage(features), state, self.num_actions)


class ValueHead(nnx.Module):
    """A layer from features to the head's outputs for the state. The arguments are those of `QHead`."""

    def __init__(
        self,
        head: Head,
        in_features: int,
        *,
        init_scale: float = INIT_SCALE,
        bias_slope: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_options(head, 1, init_scale, bias_slope)
        self.state = _linear(head, in_features, 1, init_scale, bias_slope, rngs)

    def __call__(self, features: Float[Array, "*b d"]) -> Float[Array, "*b n"]:
        return self.state(features)


def _linear(
    head: Head, in_features: int, copies: int, scale: float, slope: float, rngs: nnx.Rngs
) -> nnx.Linear:
    init = nnx.initializers.zeros_init()
    if scale:
        init = nnx.initializers.variance_scaling(scale, "fan_in", "uniform")
    layer = nnx.Linear(in_features, copies * head.num_outputs, kernel_init=init, rngs=rngs)
    if slope and layer.bias is not None:
        layer.bias[...] = initial_bias(head, slope, copies).astype(layer.bias.dtype)
    return layer
