"""ResNets with group norm and learned spatial embeddings, as in multi-game Q-learning (Scaled QL)."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from rlcls._errors import check_choice

from ._compute import check_positive, compute_dtype, normalize, relu, run
from ._images import check_image_shape, to_nhwc

_GROUPS = 4
_HIDDEN = 512


class ResNet(nnx.Module):
    """ResNet-18, 34, 50 or 101 with group norm: uint8 frames -> features of L2 norm 1.

    Convolutions have no bias. In a block with a stride, the 3 x 3 layer has the stride. Learned spatial embeddings,
    which are `spatial` weighted sums of each channel, replace the mean over positions. A dense layer of 512 units with
    a ReLU follows; its output is divided by its L2 norm. The paper does not state the number of groups (4) and of
    embeddings (8); these come from the authors' later code. The dense layer has the size of the other networks here.

    Args:
      observation_shape: (frames, height, width).
      depth: 18, 34, 50 or 101.
      width: channels of the first stage, a multiple of 4; the standard networks have 64.
      spatial: number of spatial embeddings of each channel.
      dtype: float32 or bfloat16, used in computations; parameters and features are float32.
      remat: whether the backward pass computes the inside of each block again instead of storing it.

    Raises:
      ValueError: an argument is out of range.

    Source: Kumar et al. 2022 (Scaled QL), figure 3; He et al. 2016, table 1.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        *,
        depth: int = 18,
        width: int = 64,
        spatial: int = 8,
        dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        channels, *size = self.observation_shape = check_image_shape("ResNet", observation_shape, smallest=1)
        check_choice("depth", depth, _DEPTHS)
        check_positive(width=width, spatial=spatial)
        if width % _GROUPS:
            raise ValueError(f"width must be a multiple of the {_GROUPS} groups of the norms, not {width}")
        self.dtype, self.remat, self.capture = compute_dtype(dtype), remat, False
        layers, lengths = _DEPTHS[depth]
        self.stem = _ConvNorm(channels, width, 7, 2, self.dtype, rngs)
        size = [
            math.ceil(length / 4) for length in size
        ]  # the stem and the pooling each halve height and width
        blocks, channels = [], width
        for stage, length in enumerate(lengths):
            for number in range(length):
                stride = 2 if stage and not number else 1
                block = layers(channels, width * 2**stage, stride)
                blocks.append(_Block(block, self.dtype, rngs))
                channels = block[-1][1]
                size = [math.ceil(side / stride) for side in size]
        self.blocks = nnx.List(blocks)
        # Fan-in counts positions only, because each channel has its own embeddings.
        init = nnx.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=3, batch_axis=2
        )
        self.spatial = nnx.Param(init(rngs.params(), (*size, channels, spatial), jnp.float32))
        init = nnx.initializers.xavier_uniform()
        self.dense = nnx.Linear(channels * spatial, _HIDDEN, kernel_init=init, dtype=self.dtype, rngs=rngs)
        self.num_features = _HIDDEN

    def __call__(self, observations: UInt8[Array, "b f h w"]) -> Float[Array, "b d"]:
        """Features of stacked frames, oldest first.

        Raises:
          ValueError: the observations do not have the shape that the network was made for.
          TypeError: the observations are not uint8.
        """
        x = relu(self, self.stem(to_nhwc(observations, self.observation_shape)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for block in self.blocks:
            x = run(block, x, remat=self.remat)
        x = jnp.einsum("bhwc,hwcf->bcf", x, self.spatial[...].astype(self.dtype))
        return normalize(relu(self, self.dense(x.reshape(x.shape[0], -1))))


class _ConvNorm(nnx.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dtype: Any, rngs: nnx.Rngs):
        init = nnx.initializers.kaiming_normal()
        self.convolution = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            stride,
            use_bias=False,
            kernel_init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = nnx.GroupNorm(outputs, num_groups=_GROUPS, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        return self.norm(self.convolution(x))


class _Block(nnx.Module):
    """Convolutions with a shortcut around them. Each of `layers` is (inputs, outputs, kernel, stride)."""

    def __init__(self, layers: Sequence[tuple[int, int, int, int]], dtype: Any, rngs: nnx.Rngs):
        inputs, outputs, stride = layers[0][0], layers[-1][1], math.prod(layer[3] for layer in layers)
        self.layers = nnx.List([_ConvNorm(*layer, dtype, rngs) for layer in layers])
        same = inputs == outputs and stride == 1
        self.capture = False
        self.shortcut = None if same else _ConvNorm(inputs, outputs, 1, stride, dtype, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        y = x
        for layer in self.layers[:-1]:
            y = relu(self, layer(y))
        y = self.layers[-1](y)
        return relu(self, y + (x if self.shortcut is None else self.shortcut(x)))


def _basic(inputs: int, width: int, stride: int) -> list[tuple[int, int, int, int]]:
    return [(inputs, width, 3, stride), (width, width, 3, 1)]


def _bottleneck(inputs: int, width: int, stride: int) -> list[tuple[int, int, int, int]]:
    return [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]


_DEPTHS: dict[int, tuple[Any, tuple[int, ...]]] = {
    18: (_basic, (2, 2, 2, 2)),
    34: (_basic, (3, 4, 6, 3)),
    50: (_bottleneck, (3, 4, 6, 3)),
    101: (_bottleneck, (3, 4, 23, 3)),
}
