"""IMPALA's convolutions followed by a SoftMoE instead of the dense layer, and controls for it."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from rlcls._errors import check_choice

from ._compute import check_positive, compute_dtype, relu
from ._images import check_image_shape, to_nhwc
from .impala import encode, make_stacks
from .soft_moe import Experts, SoftMoE

_PENULTIMATE = ("soft_moe", "per_token", "average", "dense")
_TOKENS = ("per_conv", "per_feat", "per_samp")


class IMPALATokens(nnx.Module):
    """IMPALA with another penultimate layer: uint8 frames -> features.

    Args:
      observation_shape: (frames, height, width).
      penultimate: "soft_moe" is a SoftMoE, whose flattened output tokens are the features. The other values are
        controls: "per_token" applies the layers of one expert to each token, without routing; "average" is global
        average pooling and a dense layer; "dense" is a dense layer on the flattened output of the convolutions.
      tokens: how the convolutions' height x width x channels are divided into tokens. With "per_conv" each position is
        a token of size channels; with "per_feat" each channel is a token of size height * width; "per_samp" is one
        token.
      num_experts: experts of the SoftMoE; the controls ignore it.
      hidden: units of an expert's hidden layer, or of the dense layer.
      learned_slots: whether the slot parameters are trained.
      width: multiplies the channels of every convolution.
      dtype: float32 or bfloat16, used in computations; parameters and features are float32.
      remat: whether the backward pass computes the inside of each stack again instead of storing it.

    Raises:
      ValueError: an argument is out of range.

    Source: Obando-Ceron et al. 2024, section 3 (placements); Sokar et al. 2024 (per_token);
      Sokar and Castro 2025 (average).
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        *,
        penultimate: str = "soft_moe",
        tokens: str = "per_conv",
        num_experts: int = 4,
        hidden: int = 512,
        learned_slots: bool = True,
        width: int = 1,
        dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.observation_shape = check_image_shape("IMPALATokens", observation_shape, smallest=1)
        check_choice("penultimate", penultimate, _PENULTIMATE)
        check_choice("tokens", tokens, _TOKENS)
        check_positive(num_experts=num_experts, hidden=hidden)
        self.dtype, self.remat, self.capture = compute_dtype(dtype), remat, False
        self.stacks, encoded = make_stacks(self.observation_shape, width, dtype=self.dtype, rngs=rngs)
        positions, channels = encoded[0] * encoded[1], encoded[2]
        self.penultimate, self.tokens = penultimate, tokens
        sizes = {"per_conv": (positions, channels), "per_feat": (channels, positions)}
        count, size = sizes.get(tokens, (1, positions * channels))
        self.layer: Any
        if penultimate == "soft_moe":
            self.layer = SoftMoE(
                count,
                size,
                num_experts=num_experts,
                hidden=hidden,
                learned_slots=learned_slots,
                dtype=self.dtype,
                rngs=rngs,
            )
        elif penultimate == "per_token":
            self.layer = Experts(size, num_experts=1, hidden=hidden, dtype=self.dtype, rngs=rngs)
        else:
            inputs = channels if penultimate == "average" else math.prod(encoded)
            init = nnx.initializers.xavier_uniform()
            self.layer = nnx.Linear(inputs, hidden, kernel_init=init, dtype=self.dtype, rngs=rngs)
        self.num_features = hidden if penultimate in ("average", "dense") else math.prod(encoded)

    def __call__(self, observations: UInt8[Array, "b f h w"]) -> Float[Array, "b d"]:
        """Features of stacked frames, oldest first.

        Raises:
          ValueError: the observations do not have the shape that the network was made for.
          TypeError: the observations are not uint8.
        """
        x = encode(self, to_nhwc(observations, self.observation_shape))
        if self.penultimate == "average":
            x = relu(self, self.layer(jnp.mean(x, axis=(1, 2))))
        elif self.penultimate == "dense":
            x = relu(self, self.layer(x.reshape(len(x), -1)))
        elif self.penultimate == "per_token":
            x = self.layer(self._tokenise(x)[:, None])
        else:
            x = self.layer(self._tokenise(x))
        return x.reshape(len(x), -1).astype(jnp.float32)

    def _tokenise(self, x: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        batch, *_, channels = x.shape
        if self.tokens == "per_samp":
            return x.reshape(batch, 1, -1)
        x = x.reshape(batch, -1, channels)
        return x if self.tokens == "per_conv" else x.swapaxes(1, 2)
