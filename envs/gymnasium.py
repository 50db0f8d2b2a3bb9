"""Any environment of gymnasium's registry as a vector environment."""

from __future__ import annotations

import contextlib
import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.vector
import jax
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float32, Integer, PyTree, Shaped

from rlcls._errors import UserError, nearest, one_line
from rlcls.spec import Spec

from .base import checked_actions, reset_arguments
from .spaces import observation_dtype, spec_from_spaces


class GymnasiumEnv(gymnasium.vector.VectorEnv):
    """N copies of a gymnasium environment that step one after another, a `HostEnv`.

    Observations are cast to the dtypes of `spec_from_spaces`. Images (uint8) are converted to channels first: [H, W, C]
    with 1, 3 or 4 channels becomes [C, H, W], and [H, W] becomes [1, H, W]. Actions are numbered from 0. A time limit
    is a truncation.

    Args:
      make_env: returns a new environment; all of them must be equal.
      num_envs: N.

    Raises:
      UserError: `num_envs` is below 1, or the environment's spaces have no `Spec`.
    """

    spec: Spec  # type: ignore[assignment]  # gymnasium's is the entry of its registry
    frame_stack = 0
    frame_skip = 1
    evaluation_epsilon = 0.0

    def __init__(self, make_env: Callable[[], gymnasium.Env], num_envs: int):
        if num_envs < 1:
            raise UserError(f"env.num_envs must be at least 1, not {num_envs}")
        self._make_env = make_env
        self._envs = gymnasium.vector.SyncVectorEnv(
            [make_env] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP
        )
        self._entry = self._envs.envs[0].spec  # its entry in the registry
        self.num_envs = num_envs
        self.name = self._entry.id if self._entry else type(self._envs.envs[0].unwrapped).__name__
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = _converted_space(self._envs.single_observation_space)
        self._first_action = getattr(self._envs.single_action_space, "start", 0)
        self.single_action_space = _counted_from_zero(self._envs.single_action_space)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self.spec = spec_from_spaces(self.single_observation_space, self.single_action_space)
        self._over = np.zeros(num_envs, bool)
        self._episode_start = np.zeros(num_envs, bool)
        self._actions: np.ndarray | None = None

    def reset(
        self, *, seed: int | Integer[np.ndarray, "N"] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[PyTree[Shaped[np.ndarray, "N ..."]], dict[str, Any]]:
        """Starts an episode in every environment, or in those of options["reset_mask"]; see `HostEnv`."""
        seeds, mask = reset_arguments(seed, options, self.num_envs)
        if self._actions is not None and not mask.all():
            raise RuntimeError("a reset of single environments must not stand between send and recv")
        self._actions = None
        with self._observations_may_misfit():
            observations: Any
            observations, info = self._envs.reset(
                seed=None if seeds is None else [int(seed) for seed in seeds],
                options=None if mask.all() else {"reset_mask": mask},
            )
        self._over = self._over & ~mask
        self._episode_start = self._episode_start | mask
        info["episode_start"] = self._episode_start
        return _converted(observations), info

    def send(self, actions: Shaped[np.ndarray, "N *action"]) -> None:
        """Keeps the actions for `recv`; see `HostEnv`."""
        if self._actions is not None:
            raise RuntimeError("send was called twice without recv")
        checked = checked_actions(actions, self.spec, self.num_envs, self.name)
        self._actions = checked.astype(self.action_space.dtype) + self._first_action

    def recv(
        self,
    ) -> tuple[
        PyTree[Shaped[np.ndarray, "N ..."]],
        Float32[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        dict[str, Any],
    ]:
        """Steps every environment: observations, rewards, terminated, truncated, info; see `HostEnv`."""
        actions, self._actions = self._actions, None
        with self._observations_may_misfit():
            played: Any = self._envs.step(actions)
            observations, rewards, terminated, truncated, info = played
        info["episode_start"] = self._episode_start = self._over
        self._over = terminated | truncated
        return _converted(observations), rewards.astype(np.float32), terminated, truncated, info

    @contextlib.contextmanager
    def _observations_may_misfit(self) -> Iterator[None]:
        """Replaces gymnasium's exception for an observation outside its space by an error in one line.

        Raises:
          UserError: an observation does not fit its space; the message names the environment and both.
        """
        try:
            yield
        except (IndexError, KeyError, TypeError, ValueError) as error:
            # Such an exception comes from gymnasium's code that copies observations into a batch.
            files = [Path(frame.filename).as_posix() for frame in traceback.extract_tb(error.__traceback__)]
            if not any("gymnasium/vector/utils" in file for file in files):
                raise
            space = self._envs.single_observation_space
            for number, observation in enumerate(getattr(self._envs, "_env_obs", ())):
                if not _fits(observation, space):
                    raise UserError(
                        f"{self.name}: environment {number} returned the observation {_described(observation)}, but "
                        f"its observation_space is {space}"
                    ) from error
            raise

    def step(self, actions: Shaped[np.ndarray, "N *action"]) -> Any:
        """`send` followed by `recv`."""
        self.send(actions)
        return self.recv()

    def evaluation(self, num_envs: int) -> GymnasiumEnv:
        """`num_envs` copies of the same environment, because evaluations have the same rules as training."""
        return GymnasiumEnv(self._make_env, num_envs)

    def describe(self) -> str:
        """The time limit in one line."""
        limit = self._entry.max_episode_steps if self._entry else None
        return f"{self.name}: " + (f"time limit {limit} steps" if limit else "no time limit")

    def facts(self) -> dict[str, Any]:
        """The environment's id, time limit, arguments and wrappers."""
        entry = self._entry
        facts = {
            "name": "gymnasium",
            "id": self.name,
            "max_episode_steps": entry.max_episode_steps if entry else None,
            "kwargs": entry.kwargs if entry else {},
            "wrappers": [wrapper.name for wrapper in entry.additional_wrappers] if entry else [],
            "evaluation_epsilon": self.evaluation_epsilon,
        }
        return json.loads(json.dumps(facts, default=repr))

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments."""
        if hasattr(self, "_envs"):  # gymnasium also closes an environment whose constructor raised
            self._envs.close()

    def __repr__(self) -> str:
        return f"GymnasiumEnv({self.name!r}, num_envs={self.num_envs})"


def make(id: str, num_envs: int = 1, **kwargs: Any) -> GymnasiumEnv:
    """`num_envs` copies of a registered environment.

    Args:
      id: its name in gymnasium's registry, such as "CartPole-v1"; "package:Name-v0" imports the package first.
      num_envs: environments stepped together.
      **kwargs: arguments of the environment, and `max_episode_steps` to replace its time limit.

    Raises:
      UserError: the environment is unknown, cannot be made with these arguments, needs another package, or has spaces
        without a `Spec`.
    """

    def make_env() -> gymnasium.Env:
        return gymnasium.make(id, disable_env_checker=True, **kwargs)

    try:
        return GymnasiumEnv(make_env, num_envs)
    except gymnasium.error.UnregisteredEnv:
        name = id.rpartition(":")[2]
        raise UserError(f"unknown environment {id!r}{nearest(name, gymnasium.registry, most=4)}") from None
    except gymnasium.error.DependencyNotInstalled as error:
        extra = re.search(r"gymnasium\[\w+\]", str(error))
        needs = f'pip install "{extra[0]}"' if extra else "another package"
        raise UserError(f"{id} needs {needs} ({one_line(error)})") from None
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise UserError(f"{id} cannot be made: {one_line(error)}") from error


def _converted(observations: Any) -> Any:
    """Batched observations in the shapes and dtypes of the spec."""
    return jax.tree.map(_converted_array, observations)


def _converted_array(array: np.ndarray) -> np.ndarray:
    array = array.astype(observation_dtype(array.dtype), copy=False)
    if array.dtype == np.uint8 and _is_channels_last(array.shape[1:]):
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))
    if array.dtype == np.uint8 and array.ndim == 3:
        return array[:, None]
    return array


def _converted_space(space: gymnasium.Space) -> gymnasium.Space:
    """The space of observations in `space` after `_converted`."""
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: _converted_space(part) for name, part in space.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_converted_space(part) for part in space])
    if isinstance(space, spaces.Box):
        low, high = (_converted_array(np.asarray(bound)[None])[0] for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=low.dtype.type)
    return space


def _counted_from_zero(space: gymnasium.Space) -> gymnasium.Space:
    if isinstance(space, gymnasium.spaces.Discrete):
        return gymnasium.spaces.Discrete(int(space.n))
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return gymnasium.spaces.MultiDiscrete(space.nvec)
    return space


def _fits(observation: Any, space: gymnasium.Space) -> bool:
    """Whether an observation has the shape of the space and a dtype that can be cast to that of the space."""
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict):
        return isinstance(observation, Mapping) and all(
            name in observation and _fits(observation[name], part) for name, part in space.items()
        )
    if isinstance(space, spaces.Tuple):
        return (
            isinstance(observation, tuple)
            and len(observation) == len(space)
            and all(map(_fits, observation, space))
        )
    try:
        array = np.asarray(observation)
    except ValueError:  # a list of lists of unequal length
        return False
    return array.shape == space.shape and np.can_cast(array.dtype, np.dtype(space.dtype), "same_kind")


def _described(observation: Any) -> str:
    if isinstance(observation, np.ndarray):
        return f"{observation.dtype} {list(observation.shape)}"
    return repr(observation).partition("\n")[0][:80]


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether `shape` is [H, W, C]; [4, 84, 84] is not."""
    return len(shape) == 3 and shape[-1] in (1, 3, 4) and min(shape[:2]) > shape[-1]
