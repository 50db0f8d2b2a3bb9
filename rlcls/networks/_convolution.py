"""A convolution whose bias costs what it should."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float


class Convolution(nnx.Module):
    """`nnx.Conv` on square windows without padding, in the order b h w f."""

    def __init__(
        self,
        channels: int,
        features: int,
        kernel: int,
        stride: int,
        *,
        kernel_init: Callable,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.window = nnx.Conv(
            channels,
            features,
            (kernel, kernel),
            stride,
            padding="VALID",
            use_bias=False,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        size, stride = self.window.kernel_size[0], self.window.strides
        return _add_bias(self._patches(x, size) if size == stride else self.window(x), self.bias[...])

    def _patches(self, x: Float[Array, "b h w c"], size: int) -> Float[Array, "b i j d"]:
        """Windows that do not overlap: one matrix product, forward and backward.

        XLA's convolutions on a CPU are slow where rows and columns are left over: 12 ms an update of two such layers
        beside 8 (one core, batch 32). Rows of windows are joined and not transposed, which takes XLA less than half
        the time: another tenth of the update.
        """
        batch, height, width, channels = x.shape
        rows, columns = height // size, width // size
        x = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size * channels)
        kernel = self.window.kernel[...].reshape(-1, self.window.out_features)
        x = jnp.concatenate([x[:, :, row] for row in range(size)], axis=-1).reshape(-1, kernel.shape[0])
        product = x.astype(self.window.dtype) @ kernel.astype(self.window.dtype)
        return product.reshape(batch, rows, columns, -1)


@jax.custom_vjp
def _add_bias(x, bias):
    return x + bias.astype(x.dtype)[None, None, None]


def _forward(x, bias):
    return _add_bias(x, bias), None


def _backward(_, gradient):
    # The sum over pictures and places as a matrix product: XLA's own reduction on a CPU takes a tenth of the whole
    # gradient's time. The barrier keeps it from being turned back into one, with the activation's mask inside.
    gradient = lax.optimization_barrier(gradient)
    rows = gradient.reshape(-1, gradient.shape[-1])
    ones = jnp.ones((1, rows.shape[0]), rows.dtype)
    return gradient, jnp.dot(ones, rows, precision="highest", preferred_element_type=jnp.float32)[0]


_add_bias.defvjp(_forward, _backward)
