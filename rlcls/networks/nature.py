"""The convolutional network of Nature's DQN."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from ._compute import compute_dtype, relu
from ._convolution import Convolution
from ._images import check_image_shape, to_nhwc

_LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride
_HIDDEN = 512


class Nature(nnx.Module):
    """Three convolutions without padding and a dense layer of 512: uint8 frames -> features.

    The sizes are those of the paper. Dopamine's has them too, but pads (SAME), which makes the dense layer
    2.5 times as large. Weights are drawn uniformly, for every loss alike; biases are 0.

    Source: Mnih et al. 2015, methods.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        *,
        init_scale: float = 1 / math.sqrt(3),
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """`init_scale` is the variance of a weight times its layer's inputs: 1/sqrt(3) as in Dopamine's C51; 2 keeps
        the size of the signal through ReLUs (He et al. 2015). `dtype` as in `ResNet`. There is no `remat`: what the
        backward pass keeps are the inputs of single layers, and those it would keep with it too.
        """
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, not {init_scale}")
        frames, *size = self.observation_shape = check_image_shape("Nature", observation_shape, smallest=36)
        self.dtype, self.capture = compute_dtype(dtype), False
        init = nnx.initializers.variance_scaling(init_scale, "fan_in", "uniform")
        convolutions, channels = [], frames
        for features, kernel, stride in _LAYERS:
            layer = Convolution(
                channels, features, kernel, stride, kernel_init=init, dtype=self.dtype, rngs=rngs
            )
            convolutions.append(layer)
            channels, size = features, [(length - kernel) // stride + 1 for length in size]
        self.convolutions = nnx.List(convolutions)
        inputs = channels * math.prod(size)
        self.dense = nnx.Linear(inputs, _HIDDEN, kernel_init=init, dtype=self.dtype, rngs=rngs)
        self.num_features = _HIDDEN

    def __call__(self, observations: UInt8[Array, "b f h w"]) -> Float[Array, "b d"]:
        """Features of stacked frames, the oldest first.

        Raises:
          ValueError: the observations have not the shape the network was made for.
          TypeError: the observations are not uint8.
        """
        x = to_nhwc(observations, self.observation_shape)
        for convolution in self.convolutions:
            x = relu(self, convolution(x))
        return relu(self, self.dense(x.reshape(x.shape[0], -1))).astype(jnp.float32)
