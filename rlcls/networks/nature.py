"""The convolutional network of Nature's DQN, and a smaller one."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from ._compute import compute_dtype, relu
from ._convolution import Convolution
from ._images import check_image_shape, to_nhwc


class Nature(nnx.Module):
    """Three convolutions without padding and a dense layer of 512: uint8 frames -> features.

    The sizes are those of the paper. Dopamine uses SAME padding, which makes the dense layer 2.5 times as large.
    Weights are uniform, with the same scale for every loss. Biases start at 0.

    Source: Mnih et al. 2015, methods.
    """

    _layers: Sequence[tuple[int, int, int]] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride
    _hidden = 512

    def __init__(
        self,
        observation_shape: Sequence[int],
        *,
        init_scale: float = 1 / math.sqrt(3),
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """`init_scale` is the variance of a weight times the number of inputs of its layer.

        The default of 1/sqrt(3) is that of Dopamine's C51; 2 preserves the variance of activations through ReLUs (He et
        al. 2015). `dtype` is that of `ResNet`. There is no `remat`, because the backward pass stores only the inputs of
        single layers, which rematerialisation would store too.
        """
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, not {init_scale}")
        smallest = 1
        for _, kernel, stride in reversed(self._layers):
            smallest = (smallest - 1) * stride + kernel
        frames, *size = self.observation_shape = check_image_shape(
            type(self).__name__, observation_shape, smallest
        )
        self.dtype, self.capture = compute_dtype(dtype), False
        init = nnx.initializers.variance_scaling(init_scale, "fan_in", "uniform")
        convolutions, channels = [], frames
        for features, kernel, stride in self._layers:
            layer = Convolution(
                channels, features, kernel, stride, kernel_init=init, dtype=self.dtype, rngs=rngs
            )
            convolutions.append(layer)
            channels, size = features, [(length - kernel) // stride + 1 for length in size]
        self.convolutions = nnx.List(convolutions)
        inputs = channels * math.prod(size)
        self.dense = nnx.Linear(inputs, self._hidden, kernel_init=init, dtype=self.dtype, rngs=rngs)
        self.num_features = self._hidden

    def __call__(self, observations: UInt8[Array, "b f h w"]) -> Float[Array, "b d"]:
        """Features of stacked frames, oldest first.

        Raises:
          ValueError: the observations do not have the shape that the network was made for.
          TypeError: the observations are not uint8.
        """
        x = to_nhwc(observations, self.observation_shape)
        for convolution in self.convolutions:
            x = relu(self, convolution(x))
        return relu(self, self.dense(x.reshape(x.shape[0], -1))).astype(jnp.float32)


class DataEfficient(Nature):
    """Two convolutions of 5 x 5 patches that do not overlap and a dense layer of 256: uint8 frames -> features.

    It has a sixth of the arithmetic of `Nature` and an eighth of its parameters. It is for learning from little data or
    on slow hardware. Rows and columns beyond the last whole patch (the last 4 of 84) are ignored.

    Source: van Hasselt et al. 2019, "When to use parametric models in reinforcement learning?", data-efficient Rainbow.
    """

    _layers = ((32, 5, 5), (64, 5, 5))
    _hidden = 256
