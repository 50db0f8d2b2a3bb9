"""A soft mixture of experts over tokens."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ._compute import check_positive, normalize, show_activity


class FixedVariable(nnx.Variable):
    """A variable that is initialised at random and never trained."""


class SoftMoE(nnx.Module):
    """A soft mixture of experts: tokens [B, T, D] -> [B, T, D].

    The input of a slot is a weighted average of all tokens, with the dispatch weights, a softmax over tokens. An
    expert, two dense layers with a ReLU between, is applied to each of its slots. An output token is a weighted average
    of the slots' outputs, with the combine weights, a softmax over slots. Both softmaxes have the logits scale * x^T
    phi, where tokens x and slot parameters phi are divided by their L2 norms. Each expert has ceil(num_tokens /
    num_experts) slots.

    Args:
      num_tokens: T.
      size: D, the size of a token.
      num_experts: at least 1.
      hidden: units of an expert's hidden layer.
      learned_slots: false keeps phi at its random initial value, outside the parameters.
      dtype: dtype of the computation, except for the softmaxes, which are float32.

    Attributes:
      capture: set by `functional`. If true, the layer sows float32 scalars: the mean and maximum cosine similarity of
        the dispatch weights of two slots and of the combine weights of two tokens, and the largest weight, averaged
        over slots or tokens. A similarity of 1 means that the slots or tokens have collapsed, or that there is only
        one.

    Raises:
      ValueError: a size is not a positive integer.

    Source: Puigcerver et al. 2023 (soft mixtures of experts), also for the normalisation; Obando-Ceron et al. 2024,
      section 2.2.
    """

    def __init__(
        self,
        num_tokens: int,
        size: int,
        *,
        num_experts: int = 4,
        hidden: int = 512,
        learned_slots: bool = True,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive(num_tokens=num_tokens, size=size, num_experts=num_experts, hidden=hidden)
        self.dtype, self.capture = dtype, False
        slots = math.ceil(num_tokens / num_experts)
        phi = jax.random.normal(rngs.params(), (size, num_experts, slots), jnp.float32) / math.sqrt(size)
        self.phi = nnx.Param(phi) if learned_slots else FixedVariable(phi)
        self.scale = nnx.Param(jnp.ones((), jnp.float32))
        self.experts = Experts(size, num_experts=num_experts, hidden=hidden, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        dispatch, combine = self.routing(tokens)
        slots = jnp.einsum("btnp,btd->bnpd", dispatch.astype(self.dtype), tokens.astype(self.dtype))
        return jnp.einsum("btnp,bnpd->btd", combine.astype(self.dtype), self.experts(slots))

    def routing(
        self, tokens: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b t n p"], Float[Array, "b t n p"]]:
        """Dispatch weights, which sum to 1 over tokens, and combine weights, which sum to 1 over slots."""
        # phi is scaled instead of the tokens, because it is smaller.
        phi = self.scale[...] * normalize(self.phi[...], axis=0)
        logits = jnp.einsum("btd,dnp->btnp", normalize(tokens), phi)
        dispatch, combine = jax.nn.softmax(logits, axis=1), jax.nn.softmax(logits, axis=(2, 3))
        if self.capture:
            flat = (*logits.shape[:2], -1)
            weights = {"dispatch": dispatch.reshape(flat).swapaxes(1, 2), "combine": combine.reshape(flat)}
            for name, rows in weights.items():
                mean, largest = _similarity(rows)
                self.sow(nnx.Intermediate, f"{name}_similarity_mean", mean)
                self.sow(nnx.Intermediate, f"{name}_similarity_max", largest)
                self.sow(nnx.Intermediate, f"{name}_weight_max", jnp.mean(jnp.max(rows, axis=-1)))
        return dispatch, combine


class Experts(nnx.Module):
    """Two dense layers with a ReLU between for each of N experts: [B, N, P, D] -> [B, N, P, D].

    The weights of a layer are one array [N, inputs, outputs], so all experts run in one batched matrix product.
    """

    def __init__(self, size: int, *, num_experts: int, hidden: int, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=1, out_axis=2, batch_axis=0
        )
        self.first = nnx.Param(init(rngs.params(), (num_experts, size, hidden), jnp.float32))
        self.first_bias = nnx.Param(jnp.zeros((num_experts, hidden), jnp.float32))
        self.second = nnx.Param(init(rngs.params(), (num_experts, hidden, size), jnp.float32))
        self.second_bias = nnx.Param(jnp.zeros((num_experts, size), jnp.float32))
        self.dtype, self.capture = dtype, False

    def __call__(self, slots: Float[Array, "b n p d"]) -> Float[Array, "b n p d"]:
        first, first_bias, second, second_bias = (
            parameter[...].astype(self.dtype)
            for parameter in (self.first, self.first_bias, self.second, self.second_bias)
        )
        x = jnp.einsum("bnpd,ndh->bnph", slots.astype(self.dtype), first) + first_bias[None, :, None]
        x = nnx.relu(x)
        show_activity(self, x, samples=(0, 2))
        return jnp.einsum("bnph,nhd->bnpd", x, second) + second_bias[None, :, None]


def _similarity(rows: Float[Array, "b r w"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and maximum cosine similarity of two different rows; 1 if there is only one row."""
    count = rows.shape[1]
    if count == 1:
        return jnp.ones((), jnp.float32), jnp.ones((), jnp.float32)
    rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    similarity = jnp.einsum("brw,bsw->brs", rows, rows, precision="highest")
    pairs = ~jnp.eye(count, dtype=bool)
    return jnp.mean(similarity, where=pairs), jnp.max(similarity, initial=-1.0, where=pairs)
