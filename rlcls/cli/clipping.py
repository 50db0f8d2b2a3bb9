"""The advice for a run whose targets lie outside the support of its head."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig

from rlcls.heads import suggest_support


def advice(config: DictConfig, replay: Any) -> str:
    """The options that widen the support, as far as the returns in the replay suggest.

    Args:
      config: the run's configuration.
      replay: the run's replay, which may have `episode_returns`; None if it has no replay.
    """
    low, high = config.loss.get("vmin"), config.loss.get("vmax")
    returns = getattr(replay, "episode_returns", None)
    if low is None or high is None or returns is None:
        return "a wider support would contain them"
    gamma = config.replay.get("gamma")
    try:
        wanted = suggest_support(returns(), gamma) if gamma is not None else None
    except ValueError:  # there are no rewards, or the discount is 1
        wanted = None
    if wanted is None:
        return "a wider support (loss.vmin, loss.vmax) would contain them"
    vmin, vmax = min(low, _outwards(wanted.edges[0])), max(high, _outwards(wanted.edges[-1]))
    if (vmin, vmax) == (low, high):
        return "the returns played so far lie inside it, so the values are too large"
    return f"loss.vmin={vmin:g} loss.vmax={vmax:g} would contain the returns played so far, with a margin"


def _outwards(value: float) -> float:
    """`value` with two significant digits, rounded away from 0."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return math.copysign(math.ceil(abs(value) / unit) * unit, value)
