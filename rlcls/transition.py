"""The batches that agents learn from."""

from __future__ import annotations

from typing import NamedTuple

from jax.typing import ArrayLike
from jaxtyping import PyTree


class Transition(NamedTuple):
    """A batch of B n-step transitions.

    There is a discount and no flag for the end of an episode: the discount is 0 after a terminal state, and a
    truncated episode bootstraps from its last observation.

    Attributes:
      observation: [B, *observation], as the environment gave it to the acting network; an array or a tree of arrays.
      action: int32 [B], or float32 [B, D] where actions are continuous; taken at `observation`.
      reward: float32 [B], the sum of gamma**i * r_i over the n steps (fewer where an episode ended).
      discount: float32 [B], gamma to the power of the number of summed steps; 0 after a terminal state.
      next_observation: [B, *observation], from which the value is bootstrapped.
      weight: float32 [B], the importance weight of the loss; ones when sampling is uniform.
      next_action: like `action`, taken at `next_observation`; only recorded data have it.
      return_to_go: float32 [B], the discounted return from `observation` on; only recorded data have it.
    """

    observation: PyTree[ArrayLike]
    action: ArrayLike
    reward: ArrayLike
    discount: ArrayLike
    next_observation: PyTree[ArrayLike]
    weight: ArrayLike
    next_action: ArrayLike | None = None
    return_to_go: ArrayLike | None = None
