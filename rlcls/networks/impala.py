"""The residual network of IMPALA."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from ._compute import check_positive, compute_dtype, relu, run
from ._images import check_image_shape, to_nhwc

_STACKS = (16, 32, 32)
_BLOCKS = 2
_HIDDEN = 512


class IMPALA(nnx.Module):
    """Three stacks of a convolution, max-pooling and two residual blocks, and a dense layer.

    The dense layer has 512 units, as in Dopamine and later value-based work; the paper's actor has 256. Weights are
    initialised as in Dopamine: Glorot uniform, and LeCun normal inside the residual blocks. Biases start at 0.

    Source: Espeholt et al. 2018, figure 3 (right).
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        *,
        width: int = 1,
        dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """`width` multiplies the channels of every convolution. `dtype` and `remat` are those of `ResNet`."""
        self.observation_shape = check_image_shape("IMPALA", observation_shape, smallest=1)
        self.dtype, self.remat, self.capture = compute_dtype(dtype), remat, False
        self.stacks, encoded = make_stacks(self.observation_shape, width, dtype=self.dtype, rngs=rngs)
        init = nnx.initializers.xavier_uniform()
        self.dense = nnx.Linear(math.prod(encoded), _HIDDEN, kernel_init=init, dtype=self.dtype, rngs=rngs)
        self.num_features = _HIDDEN

    def __call__(self, observations: UInt8[Array, "b f h w"]) -> Float[Array, "b d"]:
        """Features of stacked frames, oldest first.

        Raises:
          ValueError: the observations do not have the shape that the network was made for.
          TypeError: the observations are not uint8.
        """
        x = encode(self, to_nhwc(observations, self.observation_shape))
        return relu(self, self.dense(x.reshape(x.shape[0], -1))).astype(jnp.float32)


def make_stacks(
    observation_shape: tuple[int, int, int], width: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs
) -> tuple[nnx.List, tuple[int, int, int]]:
    """The convolutional part of the network, and the (height, width, channels) of its output.

    Raises:
      ValueError: `width` is not a positive integer.
    """
    check_positive(width=width)
    channels, *size = observation_shape
    stacks = []
    for features in _STACKS:
        stacks.append(_Stack(channels, features * width, dtype=dtype, rngs=rngs))
        channels, size = features * width, [math.ceil(length / 2) for length in size]
    return nnx.List(stacks), (size[0], size[1], channels)


def encode(network: Any, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
    """The output of the network's `stacks` in sequence, with a ReLU after the last."""
    for stack in network.stacks:
        x = run(stack, x, remat=network.remat)
    return relu(network, x)


class _Stack(nnx.Module):
    def __init__(self, in_features: int, features: int, *, dtype: Any, rngs: nnx.Rngs):
        self.capture, init = False, nnx.initializers.xavier_uniform()
        self.convolution = nnx.Conv(in_features, features, (3, 3), kernel_init=init, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([_ResidualBlock(features, dtype=dtype, rngs=rngs) for _ in range(_BLOCKS)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        x = nnx.max_pool(self.convolution(x), (3, 3), strides=(2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return x


class _ResidualBlock(nnx.Module):
    def __init__(self, features: int, *, dtype: Any, rngs: nnx.Rngs):
        self.capture = False
        self.first = nnx.Conv(features, features, (3, 3), dtype=dtype, rngs=rngs)
        self.second = nnx.Conv(features, features, (3, 3), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.second(relu(self, self.first(relu(self, x))))
