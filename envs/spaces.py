"""The `Spec` of an environment with gymnasium's spaces."""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import numpy as np

from rlcls._errors import UserError
from rlcls.spec import Spec


def spec_from_spaces(observation_space: gymnasium.Space, action_space: gymnasium.Space) -> Spec:
    """The Spec of one environment with these spaces.

    Floating-point numbers become float32. Integers become int32, except 8-bit ones, which stay as they are. Dict and
    Tuple observations become dicts and tuples. Actions are numbered from 0, whatever the space's `start` is.

    Raises:
      UserError: a space has no Spec.
    """
    spaces = gymnasium.spaces
    observation = _observation(observation_space)
    if isinstance(action_space, spaces.Discrete):
        return Spec(observation, jax.ShapeDtypeStruct((), np.int32), int(action_space.n), None)
    if isinstance(action_space, spaces.MultiDiscrete) and len(action_space.shape) == 1:
        sizes = {int(size) for size in action_space.nvec}
        if len(sizes) == 1:
            return Spec(observation, jax.ShapeDtypeStruct(action_space.shape, np.int32), sizes.pop(), None)
    if (
        isinstance(action_space, spaces.Box)
        and len(action_space.shape) == 1
        and np.issubdtype(action_space.dtype, np.floating)
    ):
        bounds = np.asarray(action_space.low, np.float32), np.asarray(action_space.high, np.float32)
        return Spec(observation, jax.ShapeDtypeStruct(action_space.shape, np.float32), None, bounds)
    raise UserError(
        f"actions of {action_space} are not supported: they must be Discrete, a MultiDiscrete vector with the same "
        "number of choices in each place, or a Box vector of floats"
    )


def observation_dtype(dtype: Any) -> np.dtype:
    """The dtype that observations of `dtype` have for an agent."""
    if np.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    return np.dtype(dtype) if np.dtype(dtype).itemsize == 1 else np.dtype(np.int32)


def _observation(space: gymnasium.Space) -> Any:
    """The shapes and dtypes of observations in `space`."""
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict):
        return {name: _observation(part) for name, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_observation(part) for part in space)
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return jax.ShapeDtypeStruct(space.shape, observation_dtype(space.dtype))
    raise UserError(
        f"observations of {space} are not supported: they must be arrays, or dicts or tuples of arrays"
    )
