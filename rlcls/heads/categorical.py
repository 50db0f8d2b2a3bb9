"""Classification: the network's outputs are the logits of a distribution over bins, whose mean is the value."""

import abc
import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rlcls import kernels
from rlcls._errors import check_choice
from rlcls.kernels.arrays import as_real, at_least_float32, clip, namespace
from rlcls.kernels.histogram.projection import Projection

from . import criteria
from ._arrays import as_outputs, as_scalars, check_distribution, check_finite, check_outputs, check_positive
from .base import Head
from .support import Support

Criterion = Literal["cross_entropy", "generalised", "ordinal"]


@dataclasses.dataclass(frozen=True)
class CategoricalHead(Head):
    """A head whose outputs are the logits of a distribution over the bins of `support`.

    Scalar heads have no `encode`, `decode`, `probs`, `log_probs` or `variance`, because they predict no distribution.
    """

    support: Support

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        # The check runs before __init__: HLGauss(-10, 10, 51) would fail there with Python's message about the number
        # of positional arguments.
        head = super().__new__(cls)
        if arguments:
            head._check_support(arguments[0])
        return head

    def __post_init__(self) -> None:
        self._check_support(self.support)

    def _check_support(self, support: Any) -> None:
        if not isinstance(support, Support):
            raise TypeError(
                f"{self.name}: support must be a heads.Support, such as heads.Support.uniform(-10, 10, 51), not "
                f"{support!r}; heads.make({self.name!r}, vmin=-10, vmax=10, num_bins=51) makes both"
            )

    @property
    @abc.abstractmethod
    def projection(self) -> Projection:
        """The map from a (squashed) target to its histogram."""

    @property
    def num_outputs(self) -> int:
        return self.support.num_bins

    def value(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b"]:
        """sum_i softmax(outputs)_i * center_i, exactly 0 for equal logits on a symmetric support.

        With a scalar_transform it is the inverse transform of the mean of the squashed distribution.
        """
        return self.support.unsquash(self._squashed_value(as_outputs(self, outputs)))

    def encode(self, scalars: Real[ArrayLike, "*b"]) -> Float[Any, "*b k"]:
        """The histogram of each scalar, clipped to the support; the row of a NaN scalar is NaN.

        NumPy in, NumPy out. The result has at least float32, and float64 stays float64.
        """
        scalars = as_real(scalars, "scalars", namespace(scalars))
        return self.projection.encode(self.support.squash(scalars))

    def decode(self, probs: Float[ArrayLike, "*b k"]) -> Float[Any, "*b"]:
        """The value of each distribution, whose probabilities must sum to 1. NumPy in, NumPy out."""
        xp = namespace(probs)
        probs = xp.asarray(probs)
        check_outputs(self, probs, "probs")
        probs = at_least_float32(probs, xp)
        return self.support.unsquash(_mean(self.support.centers, probs, None))

    def transform_to_probs(self, target: Real[ArrayLike, "*b"]) -> Float[Any, "*b k"]:
        """`encode`, under its name in appendix A of Farebrother et al. 2024."""
        return self.encode(target)

    def transform_from_probs(self, probs: Float[ArrayLike, "*b k"]) -> Float[Any, "*b"]:
        """`decode`, under its name in appendix A of Farebrother et al. 2024."""
        return self.decode(probs)

    def probs(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b k"]:
        """softmax(outputs)."""
        return jax.nn.softmax(as_outputs(self, outputs))

    def log_probs(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b k"]:
        """log_softmax(outputs)."""
        return jax.nn.log_softmax(as_outputs(self, outputs))

    def variance(self, outputs: Float[ArrayLike, "*b k"]) -> Float[Array, "*b"]:
        """The variance of the predicted distribution over `support.values`, in squared units of the scalar.

        A perfect prediction has the variance of its target: 0.65 squared bin widths for HL-Gauss at a ratio of 0.75.
        """
        probs = self.probs(outputs)
        values = self.support.values
        mean = _mean(values, probs, None)
        errors = _row(values, probs) - mean[..., None]
        return (probs * jnp.square(errors)).sum(-1)

    def clip_fraction(self, scalars: Real[ArrayLike, "*b"]) -> Float[Array, ""]:
        """The share of scalars beyond the outermost edges, or for two-hot and C51 beyond the outermost centers."""
        scalars, grid = self.support.squash(as_real(scalars, "scalars")), self.projection.grid
        outside = (scalars < grid.low) | (scalars > grid.high)
        return outside.astype(scalars.dtype).mean()

    def to_dict(self) -> dict[str, Any]:
        own = (field.name for field in dataclasses.fields(self) if field.name != "support")
        options = {name: getattr(self, name) for name in own}
        given = {name: value for name, value in options.items() if value is not None}
        return {"name": self.name} | self.support.to_dict() | given

    def _squashed_value(self, outputs: Float[Array, "*b k"]) -> Float[Array, "*b"]:
        # One division after the sum is cheaper than a softmax.
        weights = jnp.exp(outputs - lax.stop_gradient(outputs.max(-1, keepdims=True)))
        return _mean(self.support.centers, weights, weights.sum(-1))

    def _target(self, outputs: ArrayLike, scalars: ArrayLike) -> Float[Array, "*b k"]:
        scalars = self.support.squash(as_scalars(scalars, "scalars", jnp.asarray(outputs)))
        return lax.stop_gradient(self.projection.encode(scalars))


@dataclasses.dataclass(frozen=True)
class _HistogramHead(CategoricalHead):
    """A head whose loss compares the predicted distribution with a histogram of the target.

    `label_smoothing` is the share of the target that is spread evenly over all bins (Szegedy et al. 2016).
    `criterion` is the loss: "cross_entropy"; "generalised", which is bounded and takes `q` in (0, 1), by default 0.7;
    or "ordinal", which compares cumulative distributions. `criteria` has their formulas and sources.
    `rlcls.kernels.histogram_cross_entropy` computes the plain cross-entropy on bins of one width, without the
    histogram in memory. `implementation` names its implementation; the default depends on the device and the size.
    """

    label_smoothing: float = dataclasses.field(default=0.0, kw_only=True)
    criterion: Criterion = dataclasses.field(default="cross_entropy", kw_only=True)
    q: float | None = dataclasses.field(default=None, kw_only=True)
    implementation: str | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
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
        """-sum_i encode(scalars)_i * log softmax(outputs)_i, in nats, or the other `criterion`.

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

        This is the cross-entropy minus the entropy of the target, which depends on the target only (1.2 nats for
        HL-Gauss at a ratio of 0.75). Use the divergence, not the loss, to compare heads and to rank transitions. With
        the other criteria the divergence is the loss.
        """
        return self._divergence(as_outputs(self, outputs), self._target(outputs, scalars))

    def to_dict(self) -> dict[str, Any]:
        options = super().to_dict()
        defaults = {"label_smoothing": 0.0, "criterion": "cross_entropy"}
        return {name: x for name, x in options.items() if name not in defaults or x != defaults[name]}

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
    """The cross-entropy to the one bin that contains the target.

    loss(x, t) = -log softmax(x)_i with edge_i <= t < edge_{i+1}, in nats

    `decode(encode(t))` is the center of that bin, not t. Bootstrapping compounds this error, so use the head for
    Monte-Carlo returns, or for returns that are rounded to the centers.

    >>> OneHot(Support.uniform(-2, 2, 4)).encode(np.array([0.25]))
    array([[0., 0., 1., 0.]])

    Source: Farebrother et al. 2024, section 3.1.
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
    """The cross-entropy to a histogram on the two centers nearest to the target, whose mean is the target.

    loss(x, t) = -sum_i p_i * log softmax(x)_i, in nats, with p_i = max(0, 1 - |t - center_i| / width)

    On bins of unequal width, p_i interpolates linearly between neighbouring centers.

    >>> head = TwoHot(Support.uniform(-2, 2, 5, on="centers"))
    >>> head.encode(np.array([0.25]))
    array([[0.  , 0.  , 0.75, 0.25, 0.  ]])

    Source: Farebrother et al. 2024, section 3.1, in the form that keeps the mean.
    """

    @property
    def name(self) -> str:
        return "two_hot"

    @functools.cached_property
    def projection(self) -> kernels.TwoHot:
        return _two_hot(self.support)


@dataclasses.dataclass(frozen=True)
class HLGauss(_HistogramHead):
    """The cross-entropy to the histogram of a normal distribution around the target, about six bins wide.

    loss(x, t) = -sum_i p_i * log softmax(x)_i, in nats, with
    p_i = (Phi((e_{i+1} - t) / sigma) - Phi((e_i - t) / sigma)) / (Phi((e_k - t) / sigma) - Phi((e_0 - t) / sigma))

    over the bins between the edges e_0 < ... < e_k, where Phi is the normal distribution function and t is clipped to
    [e_0, e_k]. `sigma_ratio` is sigma divided by the width of a bin, by default 0.75; `sigma` sets it in the units of
    the support instead.

    A target within three sigma of an edge decodes to a value further inside the support (by 0.7 bins at the edge),
    because the mass beyond the edge is cut off. `Support.widen` adds a margin. On bins of unequal width, `sigma_ratio`
    makes sigma proportional to their width, so the histogram has the same shape everywhere. Where the bins get wider it
    decodes to slightly more than the target: on DreamerV3's 255 bins by under 1% for targets above 10, by 1.4% at 1,
    and by 0.04 bins near 0.

    >>> head = HLGauss(Support.uniform(-10, 10, 51))
    >>> head.encode(np.array([0.0])).max().round(3), head.decode(head.encode(np.array([3.0]))).round(3)
    (np.float64(0.495), array([3.]))

    Source: Imani & White 2018; Farebrother et al. 2024, equations 3.1 and 3.3.
    """

    sigma_ratio: float | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
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
    """The cross-entropy to the next state's distribution, scaled and shifted by the backup and projected on the bins.

    td_loss(x, p) = -sum_i p_i * log softmax(x)_i, in nats, with the target
    p_i = sum_j softmax(x')_j * max(0, 1 - |clip(r + discount * center_j) - center_i| / width)

    where x' are the outputs at the next state, and clip limits its argument to the outermost centers. `loss`, which
    takes scalar targets, is that of `TwoHot`.

    >>> head = C51(Support.uniform(-2, 2, 5, on="centers"))
    >>> head.td_target(jnp.array([[-jnp.inf, -jnp.inf, -jnp.inf, 0, -jnp.inf]]), jnp.ones(1), jnp.array([0.5]))
    Array([[0. , 0. , 0. , 0.5, 0.5]], dtype=float32)

    Source: Bellemare et al. 2017, algorithm 1.
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
        """The distribution of r + discount * (next return), projected on the support, without a gradient.

        The atom at a center moves to r + discount * center, where its mass is divided between the two nearest centers.
        This keeps the mean of atoms that are not clipped.

        Args:
          next_outputs: head outputs of the action to bootstrap from, at the next state.
          rewards: n-step sum of rewards, in the units of the support.
          discounts: gamma**n, or 0 if the episode terminated; a truncated episode keeps gamma**n.

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
        """-sum_i target_i * log softmax(outputs)_i, in nats, or the other `criterion`."""
        return self._loss(as_outputs(self, outputs), self._projected(outputs, target))

    def td_divergence(
        self, outputs: Float[ArrayLike, "*b k"], target: Float[ArrayLike, "*b k"]
    ) -> Float[Array, "*b"]:
        """The divergence from the prediction to the projected distribution."""
        return self._divergence(as_outputs(self, outputs), self._projected(outputs, target))

    def _projected(self, outputs: ArrayLike, target: ArrayLike) -> Float[Array, "*b k"]:
        return lax.stop_gradient(check_distribution(self, target, jnp.asarray(outputs)))


@dataclasses.dataclass(frozen=True)  # without it, signature() and help() show the arguments of __new__
class MSESoftmax(CategoricalHead):
    """The squared error of the mean of a softmax: a categorical network without a categorical loss.

    loss(x, t) = (sum_i softmax(x)_i * center_i - t)**2, with t clipped to the outermost centers

    With a scalar_transform, both terms are squashed values.

    >>> head = MSESoftmax(Support.uniform(-2, 2, 5, on="centers"))
    >>> head.loss(jnp.zeros((1, 5)), jnp.ones(1))  # equal logits have the mean 0
    Array([1.], dtype=float32)

    Source: Farebrother et al. 2024, section 5.1.1.
    """

    @property
    def name(self) -> str:
        return "mse_softmax"

    @functools.cached_property
    def projection(self) -> kernels.TwoHot:
        return _two_hot(self.support)

    def loss(self, outputs: Float[ArrayLike, "*b k"], scalars: Real[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """(value - scalar)**2, with the scalar clipped to the outermost centers."""
        outputs = as_outputs(self, outputs)
        squashed = self.support.squash(as_scalars(scalars, "scalars", outputs))
        clipped = clip(squashed, self.projection.grid.low, self.projection.grid.high)
        return jnp.square(self._squashed_value(outputs) - lax.stop_gradient(clipped))

    def divergence(
        self, outputs: Float[ArrayLike, "*b k"], scalars: Real[ArrayLike, "*b"]
    ) -> Float[Array, "*b"]:
        """The absolute error, in the units of the value."""
        outputs = as_outputs(self, outputs)
        return jnp.abs(self.value(outputs) - lax.stop_gradient(as_scalars(scalars, "scalars", outputs)))


def _two_hot(support: Support) -> kernels.TwoHot:
    """The projection of `TwoHot`, `C51` and `MSESoftmax`."""
    centers = support.centers
    if not support.is_uniform:
        return kernels.IrregularTwoHot.between(centers)
    return kernels.TwoHot(float(centers[0]), float(centers[-1]), support.num_bins)


def _row(values: np.ndarray, like: Any) -> np.ndarray:
    """The values along the last axis, in the dtype and rank of `like`."""
    return values.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def _mean(centers: np.ndarray, weights: Any, total: Any) -> Any:
    """The weighted mean of the centers, summed in mirrored pairs; a total of None means 1.

    On a symmetric support only differences of mirrored weights are multiplied, so equal weights give exactly 0, with or
    without fused multiply-adds.
    """
    half = len(centers) // 2
    upper, lower = weights[..., -half:], weights[..., :half][..., ::-1]
    middle = _middle(centers)
    above, below = centers[-half:] - middle, centers[:half][::-1] - middle
    arms, drifts = (above - below) / 2, (above + below) / 2
    terms = (upper - lower) * _row(arms, weights)
    # The second sum is computed only if the drifts are larger than rounding errors.
    if (abs(drifts) > 1e-12 * abs(centers).max()).any():
        terms = terms + (upper + lower) * _row(drifts, weights)
    mean = terms.sum(-1)
    if total is not None:
        mean = mean / total
    return mean + weights.dtype.type(middle) if middle else mean


def _middle(centers: np.ndarray) -> float:
    """The middle center, or the mean of the two middle centers if their number is even."""
    half = len(centers) // 2
    return float(centers[half] + centers[-half - 1]) / 2
