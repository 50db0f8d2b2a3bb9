"""The network of MinAtar (Young and Tian 2019): one convolution and one dense layer."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from ._compute import compute_dtype, relu

_SIDE = 3  # height and width of the convolution's window


class MinAtar(nnx.Module):
    """A 3x3 convolution without padding and a dense layer, each with a ReLU.

    Weights are initialised as in `Nature`. The convolution is a matrix product over shifted copies of the image,
    because XLA's convolutions are slow inside a loop on a CPU.

    Args:
      observation_shape: (height, width, channels), at least 3 high and wide.
      filters: channels of the convolution.
      hidden: units of the dense layer.
      dtype: dtype of the computation.
      rngs: random keys for the weights.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        *,
        filters: int = 16,
        hidden: int = 128,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.observation_shape = tuple(observation_shape)
        if len(self.observation_shape) != 3 or min(self.observation_shape[:2]) < _SIDE:
            raise ValueError(
                f"MinAtar takes observations of shape (height, width, channels), not {self.observation_shape}"
            )
        if filters < 1 or hidden < 1:
            raise ValueError(f"filters ({filters}) and hidden ({hidden}) must be at least 1")
        height, width, channels = self.observation_shape
        self._rows, self._columns = height - _SIDE + 1, width - _SIDE + 1
        self.dtype, self.capture = compute_dtype(dtype), False
        init = nnx.initializers.variance_scaling(1 / 3**0.5, "fan_in", "uniform")
        options = {"kernel_init": init, "dtype": self.dtype, "rngs": rngs}
        self.convolution = nnx.Linear(_SIDE * _SIDE * channels, filters, **options)
        self.dense = nnx.Linear(self._rows * self._columns * filters, hidden, **options)
        self.num_features = hidden

    def __call__(self, observations: Shaped[Array, "b *o"]) -> Float[Array, "b d"]:
        """Features of a batch of observations.

        Raises:
          ValueError: the observations do not have the shape that the network was made for.
        """
        if observations.shape[1:] != self.observation_shape:
            raise ValueError(
                f"observations must have shape (batch, {', '.join(map(str, self.observation_shape))}), not "
                f"{observations.shape}"
            )
        x = observations.astype(self.dtype)
        shifts = [x[:, i : i + self._rows, j : j + self._columns] for i in range(_SIDE) for j in range(_SIDE)]
        patches = jnp.concatenate(shifts, axis=-1)
        x = relu(self, self.convolution(patches.reshape(-1, patches.shape[-1])))
        x = relu(self, self.dense(x.reshape(len(observations), -1)))
        return x.astype(jnp.float32)
