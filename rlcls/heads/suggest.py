"""Supports chosen from returns or from bounds of rewards. NumPy only."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from ._arrays import check_finite
from .support import Support


def suggest_support(returns: Real[ArrayLike, "*b t"], gamma: float, num_bins: int = 51) -> Support:
    """A support on the edges for values like these returns, and for the values of a better policy.

    The support covers the returns and 0, the value after an episode. A quarter of that range is added at each end, but
    no more than the discounted sums of rewards between the lowest and the highest reward in the data. The support is
    then widened so that HL-Gauss is accurate up to these limits.

    Args:
      returns: discounted returns-to-go of successive steps; each row is one episode.
      gamma: the discount of one step.
      num_bins: number of bins of the support.

    Raises:
      ValueError: the returns are not finite or are all 0, or gamma is not in [0, 1).
    """
    returns = _finite("suggest_support", returns)
    low, high = min(returns.min(), 0.0), max(returns.max(), 0.0)
    if low == high:
        raise ValueError("suggest_support: returns are all 0, so they do not determine a range of values")
    rewards = returns.copy()
    rewards[..., :-1] -= _check_gamma(gamma) * returns[..., 1:]
    least, most = _sums(rewards.min(), rewards.max(), gamma)
    margin = 0.25 * (high - low)
    low, high = max(low - margin, min(least, low)), min(high + margin, max(most, high))
    return Support.uniform(low, high, num_bins).widen()


def support_from_rewards(min_reward: float, max_reward: float, gamma: float, num_bins: int = 51) -> Support:
    """A support on the edges for every discounted sum of rewards within these bounds.

    The support contains 0, the value after an episode. It is widened so that HL-Gauss is accurate up to the largest
    sums. It is usually wider than necessary; `suggest_support` uses observed returns instead.

    Raises:
      ValueError: the bounds are both 0 or not in order, or gamma is not in [0, 1).
    """
    min_reward = check_finite("support_from_rewards: min_reward", min_reward)
    max_reward = check_finite("support_from_rewards: max_reward", max_reward)
    if min_reward > max_reward:
        raise ValueError(
            f"support_from_rewards: min_reward ({min_reward}) must not be above max_reward ({max_reward})"
        )
    low, high = _sums(min_reward, max_reward, _check_gamma(gamma))
    return Support.uniform(low, high, num_bins).widen()


def reward_scale(returns: Real[ArrayLike, "*b n"], support: Support) -> Float[Any, "*b"]:
    """A factor for each task's rewards that brings its returns to a variance of 1, or less to stay in the support.

    The scale is 1 / max(standard deviation of the returns, largest |return| / limit), where limit is the absolute value
    of the outermost center nearest to 0. A task whose returns are all 0 has a scale of 1. Values divided by the scale
    are in the task's own units.

    Args:
      returns: the returns of each task, along the last axis.
      support: a support for all tasks that contains 0.

    Raises:
      ValueError: 0 is outside the support, or the returns are not finite.

    Source: Lee et al. 2025 (SimbaV2), section 4.3.
    """
    # The limit is a center and not an edge, because two-hot and C51 clip at the outermost centers.
    limit = min(-support.values[0], support.values[-1])
    if limit <= 0:
        raise ValueError(f"reward_scale: 0 must be inside the support, not {support}")
    returns = _finite("reward_scale", returns)
    spread = np.maximum(returns.std(-1), np.abs(returns).max(-1) / limit)
    return 1 / np.where(spread == 0, 1.0, spread)


def _sums(min_reward: float, max_reward: float, gamma: float) -> tuple[float, float]:
    """The least and the greatest discounted sum of rewards within these bounds, over any number of steps."""
    low, high = min(min_reward, 0.0) / (1 - gamma), max(max_reward, 0.0) / (1 - gamma)
    return float(low), float(high)


def _finite(function: str, returns: Any) -> np.ndarray:
    returns = np.asarray(returns, np.float64)
    if returns.ndim == 0 or returns.size == 0 or not np.isfinite(returns).all():
        what = f"of shape {returns.shape}" if returns.size < 2 else "with NaN or infinity"
        raise ValueError(
            f"{function}: returns must be finite and at least one along the last axis, not {what}"
        )
    return returns


def _check_gamma(gamma: float) -> float:
    gamma = check_finite("gamma", gamma)
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be at least 0 and below 1, not {gamma}")
    return gamma
