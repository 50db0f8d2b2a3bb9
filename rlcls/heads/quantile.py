"""Quantile regression: the network's outputs are quantiles of the return, whose mean is the value."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rlcls.kernels.arrays import as_real, check_floating, clip

from ._arrays import (
    MOST_OUTPUTS,
    as_outputs,
    as_scalars,
    check_distribution,
    check_finite,
    check_integer,
    check_leading,
)
from .base import Head

_BLOCK = 16  # targets in a step of the loop; compilers keep sums over this many in registers
_FEW_PAIRS = 2**24  # pairs of a quantile and a target: 64 MB of float32


@dataclasses.dataclass(frozen=True)
class Quantile(Head):
    """QR-DQN: `num_quantiles` quantiles of the return, at the levels tau_i = (i + 1/2) / n.

    loss(x, t) = sum_i |tau_i - [t < x_i]| * huber(t - x_i) / kappa, with i from 0 and
    huber(u) = u**2 / 2 if |u| <= kappa, else kappa * (|u| - kappa / 2)

    With kappa = 0 the loss is its limit sum_i |tau_i - [t < x_i]| * |t - x_i| (QR-DQN-0).

    `td_loss` is the mean of this loss over the targets t = r + discount * x'_j, where x' are the quantiles at the next
    state. The head needs no support.

    >>> Quantile(num_quantiles=2).loss(jnp.array([[-1.0, 3.0]]), jnp.zeros(1))  # 0.25 * 0.5 + 0.25 * 2.5
    Array([0.75], dtype=float32)

    Source: Dabney et al. 2018, equations 9 and 10.
    """

    num_quantiles: int = 200
    kappa: float = 1.0

    def __post_init__(self) -> None:
        count = check_integer("quantile: num_quantiles", self.num_quantiles, 1, MOST_OUTPUTS)
        object.__setattr__(self, "num_quantiles", count)
        object.__setattr__(self, "kappa", _check_kappa("quantile: kappa", self.kappa, np.float32))

    @property
    def name(self) -> str:
        return "quantile"

    @property
    def num_outputs(self) -> int:
        return self.num_quantiles

    def value(self, outputs: Float[ArrayLike, "*b n"]) -> Float[Array, "*b"]:
        """The mean of the quantiles."""
        return as_outputs(self, outputs).mean(-1)

    def variance(self, outputs: Float[ArrayLike, "*b n"]) -> Float[Array, "*b"]:
        """The variance of the quantiles."""
        return as_outputs(self, outputs).var(-1)

    def loss(self, outputs: Float[ArrayLike, "*b n"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """The quantile Huber loss to one scalar, summed over the quantiles.

        Source: Dabney et al. 2018, equation 10.
        """
        outputs = as_outputs(self, outputs)
        return quantile_huber(outputs, as_scalars(scalars, "scalars", outputs)[..., None], kappa=self.kappa)

    def divergence(
        self, outputs: Float[ArrayLike, "*b n"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The loss, which is 0 if every quantile equals the scalar."""
        return self.loss(outputs, scalars)

    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """Zero, because quantiles can represent every number."""
        return jnp.zeros((), as_real(scalars, "scalars").dtype)

    def td_target(
        self,
        next_outputs: Float[ArrayLike, "*b n"],
        rewards: Real[ArrayLike, "*b"],
        discounts: Real[ArrayLike, "*b"],
    ) -> Float[Array, "*b n"]:
        """The quantiles r + discount * next_outputs, without a gradient.

        Args:
          next_outputs: head outputs of the action to bootstrap from, at the next state.
          rewards: n-step sum of rewards.
          discounts: gamma**n, or 0 if the episode terminated; a truncated episode keeps gamma**n.
        """
        next_outputs = as_outputs(self, next_outputs, "next_outputs")
        rewards = as_scalars(rewards, "rewards", next_outputs, "next_outputs")
        discounts = as_scalars(discounts, "discounts", next_outputs, "next_outputs")
        return lax.stop_gradient(rewards[..., None] + discounts[..., None] * next_outputs)

    def td_loss(
        self, outputs: Float[ArrayLike, "*b n"], target: Float[ArrayLike, "*b n"]
    ) -> Float[Array, "*b"]:
        """The quantile Huber loss, summed over predicted quantiles and averaged over quantiles of the target.

        Source: Dabney et al. 2018, algorithm 1.
        """
        outputs = as_outputs(self, outputs)
        return quantile_huber(outputs, check_distribution(self, target, outputs), kappa=self.kappa)

    def td_divergence(
        self, outputs: Float[ArrayLike, "*b n"], target: Float[ArrayLike, "*b n"]
    ) -> Float[Array, "*b"]:
        """`td_loss`."""
        return self.td_loss(outputs, target)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name} | dataclasses.asdict(self)


def quantile_huber(
    quantiles: Float[ArrayLike, "*b n"], targets: Real[ArrayLike, "*b m"], *, kappa: float = 1.0
) -> Float[Array, "*b"]:
    """The quantile Huber loss of predicted quantiles to samples (or quantiles) of the target.

    mean_j sum_i |tau_i - [u < 0]| * huber(u, kappa) / kappa with u = targets[j] - quantiles[i] and
    tau_i = (i + 1/2) / n. With kappa = 0, huber(u, kappa) / kappa is its limit |u|, whose slope at u = 0 is taken as 0.
    The targets get no gradient. Time grows with n * m, memory with n + m.

    Raises:
      ValueError: the leading dimensions differ, there are no quantiles or no targets, or kappa is neither 0 nor a
        normal number of the dtype of the loss.
      TypeError: the quantiles are not floating point, or the targets not real.

    Source: Dabney et al. 2018, equations 9 and 10.
    """
    predicted, samples = jnp.asarray(quantiles), as_real(targets, "targets")
    check_floating(predicted, "quantiles")
    for argument, x in (("quantiles", predicted), ("targets", samples)):
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"{argument} of shape {x.shape} must have a last axis of at least 1")
    check_leading(samples.shape[:-1], "targets", predicted, "quantiles")
    dtype = jnp.promote_types(predicted.dtype, samples.dtype)
    kappa = _check_kappa("quantile_huber: kappa", kappa, dtype)
    return _loss(predicted.astype(dtype), lax.stop_gradient(samples).astype(dtype), kappa)


def _check_kappa(what: str, kappa: Any, dtype: Any) -> float:
    """kappa as a float. Raises a ValueError if it is negative, or if it is too small for `dtype` to divide by it."""
    kappa, tiny = check_finite(what, kappa), float(jnp.finfo(dtype).tiny)
    if kappa < 0 or 0 < kappa < tiny:
        raise ValueError(f"{what} must be 0 or at least {tiny:.3g}, not {kappa}")
    return kappa


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _loss(quantiles: Float[Array, "*b n"], targets: Float[Array, "*b m"], kappa: float) -> Float[Array, "*b"]:
    return _loss_and_slopes(quantiles, targets, kappa)[0]


@_loss.defjvp
def _loss_jvp(kappa: float, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Any, Any]:
    loss, slopes = _loss_and_slopes(*primals, kappa)
    return loss, (slopes * tangents[0]).sum(-1)


def _loss_and_slopes(
    quantiles: Float[Array, "*b n"], targets: Float[Array, "*b m"], kappa: float
) -> tuple[Float[Array, "*b"], Float[Array, "*b n"]]:
    """The loss, and its derivative with respect to each quantile."""
    arguments = quantiles, targets
    count = math.prod(quantiles.shape) * targets.shape[-1]
    if count <= _FEW_PAIRS:
        each, slopes = lax.platform_dependent(
            *arguments, cpu=partial(_in_blocks, kappa=kappa), default=partial(_at_once, kappa=kappa)
        )
    else:
        each, slopes = _in_blocks(*arguments, kappa=kappa)
    return each.sum(-1) / targets.shape[-1], slopes / targets.shape[-1]


def _in_blocks(quantiles: Array, targets: Array, kappa: float) -> tuple[Array, Array]:
    """Loss and slope of each quantile, summed over targets in the memory of a few arrays like `quantiles`."""
    blocks, rest = divmod(targets.shape[-1] - 1, _BLOCK)
    first, later = jnp.split(targets, [rest + 1], axis=-1)
    sums = _sum_over_block(quantiles, first, kappa)
    if blocks:
        later = jnp.moveaxis(later.reshape(*later.shape[:-1], blocks, _BLOCK), -2, 0)

        def add(sums: tuple[Array, Array], block: Array) -> tuple[tuple[Array, Array], None]:
            return jax.tree.map(jnp.add, sums, _sum_over_block(quantiles, block, kappa)), None

        sums, _ = lax.scan(add, sums, later)
    return sums


def _sum_over_block(quantiles: Array, targets: Array, kappa: float) -> tuple[Array, Array]:
    # The sum over targets is unrolled, because for a sum over an axis XLA would store all pairs on a CPU. Adding in a
    # tree rounds less than adding in sequence.
    terms = [_terms(quantiles, targets[..., j, None], kappa) for j in range(targets.shape[-1])]
    while len(terms) > 1:
        odd = terms[len(terms) // 2 * 2 :]
        terms = [jax.tree.map(jnp.add, *pair) for pair in zip(terms[::2], terms[1::2], strict=False)] + odd
    return terms[0]


def _at_once(quantiles: Array, targets: Array, kappa: float) -> tuple[Array, Array]:
    """`_in_blocks` by broadcasting, which is faster on an accelerator if all pairs fit in its memory."""
    losses, slopes = _terms(quantiles[..., None, :], targets[..., :, None], kappa)
    return losses.sum(-2), slopes.sum(-2)


def _terms(quantiles: Array, targets: Array, kappa: float) -> tuple[Array, Array]:
    """The loss of each pair and its derivative with respect to the quantile; the arrays broadcast."""
    n = quantiles.shape[-1]
    scale = kappa or 1.0
    levels = (np.arange(n) + 0.5) / (n * scale)
    below, above = (
        x.astype(quantiles.dtype).reshape((1,) * (quantiles.ndim - 1) + (-1,))
        for x in (1 / scale - levels, levels)
    )
    errors = targets - quantiles
    clipped = clip(errors, -kappa, kappa) if kappa else jnp.sign(errors)
    pull = jnp.where(errors < 0, below, above) * clipped
    return pull * (errors - clipped / 2 if kappa else errors), -pull
