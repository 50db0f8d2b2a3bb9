"""Classification: the network's outputs are the logits of a distribution whose mean is the value."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rlcls import kernels

from . import criteria
from ._arrays import (
    as_outputs,
    as_scalars,
    check_choice,
    check_finite,
    check_leading,
    check_outputs,
    check_positive,
)
from .bins import BinsHead, two_hot

Criterion = Literal["cross_entropy", "generalised", "ordinal"]


@dataclasses.dataclass(frozen=True)
class _HistogramHead(BinsHead):
    """The distance of the prediction to a histogram of the target.

    `label_smoothing` is the share of the target that is spread evenly over all bins (Szegedy et al. 2016).
    `criterion` is the distance: "cross_entropy"; "generalised", bounded, with `q` in (0, 1), 0.7 unless
    given; or "ordinal", of the cumulative distributions. See `criteria` for their sources.
    The plain cross-entropy on bins of one width is computed without the histogram in memory, by the
    `implementation` of `rlcls.kernels.histogram_cross_entropy`: the fastest here unless named.
    """

    label_smoothing: float = dataclasses.field(default=0.0, kw_only=True)
    criterion: Criterion = dataclasses.field(default="cross_entropy", kw_only=True)
    q: float | None = dataclasses.field(default=None, kw_only=True)
    implementation: str | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        smoothing = check_finite(f"{self.name}: label_smoothing", self.label_smoothing)
        if not 0 <= smoothing < 1:
            raise ValueError(f"{self.name}: label_smoothing must be at least 0 and below 1, not {smoothing}")
        object.__setattr__(self, "label_smoothing", smoothing)
        check_choice(f"{self.name}: criterion", self.criterion, ("cross_entropy", "generalised", "ordinal"))
        if self.criterion == "generalised":
            q = check_finite(f"{self.name}: q", 0.7 if self.q is None else self.q)
            if not 0 < q < 1:
                raise ValueError(f"{self.name}: q must be above 0 and below 1, not {q}")
            object.__setattr__(self, "q", q)
        elif self.q is not None:
            raise ValueError(f"{self.name}: q ({self.q}) goes with criterion 'generalised' only")
        if self.implementation is not None:
            check_choice(f"{self.name}: implementation", self.implementation, kernels.IMPLEMENTATIONS)
            if not self._is_fused:
                raise ValueError(
                    f"{self.name}: implementation ({self.implementation}) goes with the plain cross-entropy "
                    "on bins of one width only"
                )

    def loss(self, outputs: Float[ArrayLike, "*b k"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """The cross-entropy of the prediction to `encode(scalars)`, in nats; or the criterion asked for.

        Source: Farebrother et al. 2024, equation 3.1.
        """
        if not self._is_fused:
            return self._loss(as_outputs(self, outputs), self._target(outputs, scalars))
        outputs = jnp.asarray(outputs)
        check_outputs(self, outputs, "outputs")
        scalars = self.support.squash(as_scalars(scalars, "scalars", outputs))
        return kernels.histogram_cross_entropy(
            outputs, scalars, self.projection, implementation=self.implementation
        )

    def divergence(
        self, outputs: Float[ArrayLike, "*b k"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The Kullback-Leibler divergence from the prediction to `encode(scalars)`, in nats.

        The cross-entropy less its floor, the entropy of the target, which is 1.2 nats for HL-Gauss at a ratio
        of 0.75 and depends on the target alone; so this, and not the loss, compares heads and ranks
        transitions. The other criteria have no floor: they are their own divergence.
        """
        return self._divergence(as_outputs(self, outputs), self._target(outputs, scalars))

    def to_dict(self) -> dict[str, Any]:
        options = super().to_dict()
        unsaid = {"label_smoothing": 0.0, "criterion": "cross_entropy"}
        return {name: x for name, x in options.items() if name not in unsaid or x != unsaid[name]}

    @property
    def _is_fused(self) -> bool:
        return self.criterion == "cross_entropy" and not self.label_smoothing and self.support.is_uniform

    def _loss(self, logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
        if self.criterion == "cross_entropy":
            return criteria.cross_entropy(logits, self._smooth(probs))
        return self._divergence(logits, probs)

    def _divergence(self, logits: Float[Array, "*b k"], probs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
        probs = self._smooth(probs)
        if self.criterion == "generalised":
            assert self.q is not None
            return criteria.generalised(logits, probs, self.q)
        if self.criterion == "ordinal":
            return criteria.ordinal(logits, probs)
        return criteria.kullback_leibler(logits, probs)

    def _smooth(self, probs: Float[Array, "*b k"]) -> Float[Array, "*b k"]:
        if not self.label_smoothing:
            return probs
        return (1 - self.label_smoothing) * probs + self.label_smoothing / self.num_outputs


class OneHot(_HistogramHead):
    """The bin that the target falls in. Its values are the centers: a target in between is lost.

    Bootstrapping compounds that; for rounded or final returns only (Farebrother et al. 2024, section 3.1).
    """

    @property
    def name(self) -> str:
        return "one_hot"

    @functools.cached_property
    def projection(self) -> kernels.OneHot:
        support = self.support
        if not support.is_uniform:
            return kernels.IrregularOneHot.between(support.edges)
        return kernels.OneHot(support.low_edge, support.high_edge, support.num_bins)


class TwoHot(_HistogramHead):
    """The target shared between its two nearest centers, so that decoding gives it back.

    Source: Farebrother et al. 2024, section 3.1, in the form that keeps the mean.
    """

    @property
    def name(self) -> str:
        return "two_hot"

    @functools.cached_property
    def projection(self) -> kernels.TwoHot:
        return two_hot(self.support)


@dataclasses.dataclass(frozen=True)
class HLGauss(_HistogramHead):
    """The target smeared by a normal distribution over about six bins: the paper's classification loss.

    `sigma_ratio` is sigma over the width of a bin, 0.75 unless given; `sigma` gives it in the units of the
    support instead. Within three sigma of an edge a target decodes to less than itself (by 0.7 bins at the
    edge), because what the distribution has beyond the edge is cut off: make the support that much wider
    than the values, by `Support.widen`. On unequal bins a ratio follows the width of the bins, so the
    histogram has the same shape everywhere; it decodes to a little more than the target where they grow (on
    DreamerV3's 255 bins by under 1% from 10 on, 1.4% at 1, and 0.04 bins near 0).

    Source: Imani & White 2018; Farebrother et al. 2024, section 3.1.
    """

    sigma_ratio: float | None = None
    sigma: float | None = None

    def __post_init__(self):
        if self.sigma is None:
            ratio = check_positive(
                "hlgauss: sigma_ratio", 0.75 if self.sigma_ratio is None else self.sigma_ratio
            )
            object.__setattr__(self, "sigma_ratio", ratio)
        elif self.sigma_ratio is not None:
            raise ValueError(
                f"hlgauss: give sigma_ratio ({self.sigma_ratio}) or sigma ({self.sigma}), not both"
            )
        else:
            object.__setattr__(self, "sigma", check_positive("hlgauss: sigma", self.sigma))
        super().__post_init__()

    @property
    def name(self) -> str:
        return "hlgauss"

    @functools.cached_property
    def projection(self) -> kernels.Gaussian:
        support = self.support
        sigma, ratio = self.sigma, self.sigma_ratio
        if support.is_uniform:
            sigma = ratio * support.width if sigma is None else sigma
            return kernels.Gaussian(support.low_edge, support.high_edge, support.num_bins, sigma)
        if ratio is not None:
            return kernels.LocalGaussian.between(support.edges, ratio)
        assert sigma is not None
        return kernels.IrregularGaussian.between(support.edges, sigma)


class C51(TwoHot):
    """The distribution of returns, backed up as a distribution.

    Given scalars it is `TwoHot`; its `td_target` is the whole distribution of the next state, moved and
    projected.

    Source: Bellemare et al. 2017.
    """

    @property
    def name(self) -> str:
        return "c51"

    def td_target(
        self,
        next_outputs: Float[ArrayLike, "*b k"],
        rewards: Real[ArrayLike, "*b"],
        discounts: Real[ArrayLike, "*b"],
    ) -> Float[Array, "*b k"]:
        """The distribution of r + discount * (next return), projected on the support; no gradient through it.

        Each atom's mass is shared between its two nearest neighbours: the mean stays, but for what is
        clipped.

        Args:
          next_outputs: head outputs of the action to bootstrap from, at the next state.
          rewards: n-step sum of rewards, in the units of the support.
          discounts: gamma**n, and 0 where the episode ended: a truncation is not an end.

        Source: Bellemare et al. 2017, algorithm 1.
        """
        next_outputs = as_outputs(self, next_outputs, "next_outputs")
        rewards = as_scalars(rewards, "rewards", next_outputs, "next_outputs")
        discounts = as_scalars(discounts, "discounts", next_outputs, "next_outputs")
        probs = jax.nn.softmax(next_outputs)
        atoms = jnp.asarray(self.support.values, probs.dtype).reshape((1,) * rewards.ndim + (-1,))
        moved = self.support.squash(rewards[..., None] + discounts[..., None] * atoms)
        return lax.stop_gradient(self.projection.project(probs, moved))

    def td_loss(
        self, outputs: Float[ArrayLike, "*b k"], target: Float[ArrayLike, "*b k"]
    ) -> Float[Array, "*b"]:
        """The cross-entropy of the prediction to the projected distribution, or the criterion asked for."""
        return self._loss(as_outputs(self, outputs), self._projected(outputs, target))

    def td_divergence(
        self, outputs: Float[ArrayLike, "*b k"], target: Float[ArrayLike, "*b k"]
    ) -> Float[Array, "*b"]:
        """The divergence from the prediction to the projected distribution."""
        return self._divergence(as_outputs(self, outputs), self._projected(outputs, target))

    def _projected(self, outputs: ArrayLike, target: ArrayLike) -> Float[Array, "*b k"]:
        target = as_outputs(self, target, "target")
        check_leading(target.shape[:-1], "target", jnp.asarray(outputs))
        return lax.stop_gradient(target)


class MSESoftmax(BinsHead):
    """The squared error of the mean of a softmax: a categorical network without a categorical loss.

    With a scalar_transform the error is that of the squashed values.

    Source: Farebrother et al. 2024, section 5.1.1.
    """

    @property
    def name(self) -> str:
        return "mse_softmax"

    @functools.cached_property
    def projection(self) -> kernels.TwoHot:
        return two_hot(self.support)

    def loss(self, outputs: Float[ArrayLike, "*b k"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """(value - scalar)**2, the scalar clipped to the support."""
        outputs = as_outputs(self, outputs)
        squashed = self.support.squash(as_scalars(scalars, "scalars", outputs))
        grid = self.projection.grid
        # Not jnp.clip: on the CPU it may lose a NaN.
        clipped = jnp.where(
            squashed < grid.low, grid.low, jnp.where(squashed > grid.high, grid.high, squashed)
        )
        return jnp.square(self._squashed_value(outputs) - lax.stop_gradient(clipped))

    def divergence(
        self, outputs: Float[ArrayLike, "*b k"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The absolute error, in the units of the value."""
        outputs = as_outputs(self, outputs)
        return jnp.abs(self.value(outputs) - lax.stop_gradient(as_scalars(scalars, "scalars", outputs)))
