"""Which support, when the values are not known beforehand. NumPy only."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from ._arrays import check_finite
from .support import Support


def suggest_support(returns: Real[ArrayLike, "*b t"], gamma: float, num_bins: int = 51) -> Support:
    """A support on the edges for values like these returns, and for those of a better policy.

    It reaches from the least to the greatest return and a quarter of that range beyond, but never beyond what
    the rewards in the data can sum to; it holds 0, the value after an end; and it is widened so that
    HL-Gauss is right up to there.

    Args:
      returns: discounted returns to go of successive steps, one episode a row.
      gamma: the discount of one step.
      num_bins: of the support.

    Raises:
      ValueError: the returns are not finite or all 0, or gamma is not in [0, 1).
    """
    returns = _finite("suggest_support", returns)
    low, high = min(returns.min(), 0.0), max(returns.max(), 0.0)
    if low == high:
        raise ValueError("suggest_support: returns are all 0, and say nothing of the range of values")
    rewards = returns.copy()
    rewards[..., :-1] -= _check_gamma(gamma) * returns[..., 1:]
    least, most = _sums(rewards.min(), rewards.max(), gamma)
    margin = 0.25 * (high - low)
    low, high = max(low - margin, min(least, low)), min(high + margin, max(most, high))
    return Support.uniform(low, high, num_bins).widen()


def support_from_rewards(min_reward: float, max_reward: float, gamma: float, num_bins: int = 51) -> Support:
    """A support on the edges for every value there can be: discounted sums of rewards in these bounds.

    It holds 0, the value after an end, and is widened so that HL-Gauss is right up to the bounds. It is
    usually wider than it need be: `suggest_support` looks at returns.

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
    """What to multiply each task's rewards by so that its returns use the support and stay in it.

    One over max(standard deviation of the returns, greatest |return| / limit), where limit is the nearer of
    the support's outermost centers: the returns get a variance of at most 1. A task whose returns are all 0
    keeps its rewards. Divide values by the scale to read them in the task's own units.

    Args:
      returns: of each task, along the last axis.
      support: that all tasks share, with 0 inside.

    Raises:
      ValueError: 0 is not inside the support, or the returns are not finite.

    Source: Lee et al. 2025 (SimbaV2), section 4.3.
    """
    # Of the outermost centers, not edges: two-hot and C51 clip at those.
    limit = min(-support.values[0], support.values[-1])
    if limit <= 0:
        raise ValueError(f"reward_scale: 0 must be inside the support, not {support}")
    returns = _finite("reward_scale", returns)
    spread = np.maximum(returns.std(-1), np.abs(returns).max(-1) / limit)
    return 1 / np.where(spread == 0, 1.0, spread)


def _sums(min_reward: float, max_reward: float, gamma: float) -> tuple[float, float]:
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
