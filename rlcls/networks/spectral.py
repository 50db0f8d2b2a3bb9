"""Linear layers whose weight has a learned spectral norm."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from rlcls._errors import check_choice

GAMMA_INITS = ("one", "norm")
_TINY = 1e-30


class PowerVector(nnx.Variable):
    """The vector of a power iteration: state of the network, not a parameter."""


class SpectralLinear(nnx.Module):
    """x -> x W_hat with W_hat = (gamma / sigma) W, the largest singular value sigma of W, a learned gamma, no bias.

    sigma is v^T W u, where u and v get no gradient. Each call in training mode makes one step of power iteration and
    stores u, an estimate of the right singular vector. The initial u is exact.

    Args:
      in_features: number of rows of W.
      out_features: number of columns of W.
      gamma_init: "one", as in the authors' speech models; or "norm", which is sigma of the initial W, so that W_hat
        starts as W, as in their vision models.
      dtype: dtype of the product; W_hat is computed in float32.

    Raises:
      ValueError: gamma_init is neither of these.

    Source: Zhai et al. 2023 (sigma-reparam); both initial values of gamma are in the authors' code.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        gamma_init: str = "one",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("gamma_init", gamma_init, GAMMA_INITS)
        kernel = nnx.initializers.lecun_normal()(rngs.params(), (in_features, out_features), jnp.float32)
        # Eigenvectors of the smaller of W^T W and W W^T take a third of the time of a singular value decomposition.
        if out_features <= in_features:
            u = jnp.linalg.eigh(kernel.T @ kernel)[1][:, -1]
        else:
            u = _unit(jnp.linalg.eigh(kernel @ kernel.T)[1][:, -1] @ kernel)
        norm = jnp.linalg.norm(kernel @ u)
        self.kernel = nnx.Param(kernel)
        self.gamma = nnx.Param(jnp.ones((), jnp.float32) if gamma_init == "one" else norm)
        self.power = PowerVector(u)
        self.deterministic = True  # set by Module.train() and eval()
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """x W_hat. In training mode a step of power iteration comes first."""
        return x.astype(self.dtype) @ self.weight().astype(self.dtype)

    def weight(self) -> Float[Array, "i o"]:
        """W_hat, float32."""
        kernel = self.kernel[...]
        constant = lax.stop_gradient(kernel)
        # In a target network that is a Polyak average, the stored vector is shorter than 1.
        u = _unit(self.power[...])
        v = _unit(_product(constant, u))
        if not self.deterministic:
            u = _unit(_product(v, constant))
            self.power[...] = u
        sigma = _product(_product(v, kernel), u)
        return (self.gamma[...] / jnp.maximum(sigma, _TINY)) * kernel


def _product(x: Array, y: Array) -> Array:
    # Accelerators round factors by default. Full precision is cheap for these small products.
    return jnp.matmul(x, y, precision="highest")


def _unit(x: Float[Array, "n"]) -> Float[Array, "n"]:
    return x / jnp.maximum(jnp.linalg.norm(x), _TINY)
