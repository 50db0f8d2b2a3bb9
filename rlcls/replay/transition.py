"""The one batch type that replay, datasets and every agent share."""

from __future__ import annotations

from typing import Any, NamedTuple


class Transition(NamedTuple):
    """A batch of n-step transitions; `B` is the batch size.

    Attributes:
      observation: [B, *observation], as the environment gave it to the acting network.
      action: int32 [B], taken at `observation`.
      reward: float32 [B], sum of gamma**i * r_i over the n steps (fewer where an episode ended).
      discount: float32 [B], gamma**n of the steps really summed; 0 after a terminal. A truncation is no
        terminal: it bootstraps from the last observation of the cut episode.
      next_observation: [B, *observation], to bootstrap from.
      weight: float32 [B], importance weight of the loss; ones when sampling is uniform.
    """

    observation: Any
    action: Any
    reward: Any
    discount: Any
    next_observation: Any
    weight: Any
