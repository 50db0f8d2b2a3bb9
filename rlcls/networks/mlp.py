"""A plain multi-layer perceptron, for observations that are vectors."""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from ._compute import compute_dtype, relu


class MLP(nnx.Module):
    """Dense layers with ReLUs on the flattened observation. Weights and `dtype` are as in `Nature`, without `remat`."""

    def __init__(
        self,
        observation_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (64, 64),
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.observation_shape = tuple(observation_shape)
        if not hidden or not all(isinstance(size, int) and size >= 1 for size in hidden):
            raise ValueError(f"hidden must be integers of at least 1, not {tuple(hidden)}")
        sizes = [math.prod(self.observation_shape), *hidden]
        if not sizes[0]:
            raise ValueError(
                f"MLP takes observations of at least one number, not of shape {self.observation_shape}"
            )
        self.dtype, self.capture = compute_dtype(dtype), False
        init = nnx.initializers.variance_scaling(1 / math.sqrt(3), "fan_in", "uniform")
        self.layers = nnx.List(
            [
                nnx.Linear(i, o, kernel_init=init, dtype=self.dtype, rngs=rngs)
                for i, o in itertools.pairwise(sizes)
            ]
        )
        self.num_features = sizes[-1]

    def __call__(self, observations: Shaped[Array, "b *o"]) -> Float[Array, "b d"]:
        """Features of a batch of observations.

        Raises:
          ValueError: the observations do not have the shape that the network was made for, or are uint8 images.
        """
        if observations.ndim == 0 or observations.shape[1:] != self.observation_shape:
            wanted = ", ".join(map(str, ("batch", *self.observation_shape)))
            raise ValueError(f"observations must have shape ({wanted}), not {observations.shape}")
        if observations.dtype == jnp.uint8 and len(self.observation_shape) >= 3:
            raise ValueError(
                f"MLP takes vectors, not uint8 images of shape {self.observation_shape}; "
                "the other backbones take images"
            )
        x = observations.reshape(observations.shape[0], -1).astype(jnp.float32)
        for layer in self.layers:
            x = relu(self, layer(x))
        return x.astype(jnp.float32)
