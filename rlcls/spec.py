"""The shapes, dtypes and ranges of observations and actions, for which an agent is built."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree


class Spec(NamedTuple):
    """The observations and actions of an environment or a dataset.

    Attributes:
      observation: one observation without a batch axis, an array or a tree of arrays.
      action: one action: int32 [] (one of `num_actions`), float32 [D] (continuous) or int32 [T] (T tokens, each one
        of `num_actions`).
      num_actions: values that a discrete action can take, 0 to num_actions - 1; None for continuous actions.
      action_range: (lowest, highest), each float32 [D], of a continuous action; None for discrete actions.
    """

    observation: PyTree[jax.ShapeDtypeStruct]
    action: jax.ShapeDtypeStruct
    num_actions: int | None
    action_range: tuple[np.ndarray, np.ndarray] | None
