"""The last layer of a network, as a flax NNX module: from features to the outputs of a head."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .base import Head


class QHead(nnx.Module):
    """Features -> the head's outputs for every action.

    Weights are drawn from U(-l, l), l = sqrt(3 * init_scale / in_features), as in Dopamine's C51; biases are
    0, and init_scale=0 makes every output 0. A dueling head adds, to the outputs of a state, what each
    action's have over their mean; with classes these are logits.

    Source: Wang et al. 2016, equation 9 (dueling).
    """

    def __init__(
        self,
        head: Head,
        in_features: int,
        num_actions: int,
        *,
        dueling: bool = False,
        init_scale: float = 1 / math.sqrt(3),
        rngs: nnx.Rngs,
    ):
        if num_actions < 1:
            raise ValueError(f"num_actions must be at least 1, not {num_actions}")
        if not init_scale >= 0:
            raise ValueError(f"init_scale must not be negative, not {init_scale}")
        self.shape = (num_actions, head.num_outputs)
        init = nnx.initializers.zeros_init()
        if init_scale:
            init = nnx.initializers.variance_scaling(init_scale, "fan_in", "uniform")
        self.advantage = nnx.Linear(in_features, num_actions * head.num_outputs, kernel_init=init, rngs=rngs)
        self.state = (
            nnx.Linear(in_features, head.num_outputs, kernel_init=init, rngs=rngs) if dueling else None
        )

    def __call__(self, features: Float[Array, "*b d"]) -> Float[Array, "*b a n"]:
        outputs = self.advantage(features).reshape(features.shape[:-1] + self.shape)
        if self.state is None:
            return outputs
        state = jnp.expand_dims(self.state(features), -2)
        return state + (outputs - outputs.mean(-2, keepdims=True))
