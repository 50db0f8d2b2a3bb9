"""Gymnasium's vector wrappers around a `HostEnv`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium.vector
import jax
import numpy as np
from jaxtyping import Integer, Shaped

from rlcls._errors import UserError, class_name, listed
from rlcls.spec import Spec

from .base import HostEnv, Observations, Step, checked_actions
from .checker import check_host_env
from .spaces import observation_dtype, spec_from_spaces


def as_host_env(env: Any, make: Callable[[int], Any] | None = None) -> HostEnv:
    """`env` itself, or a gymnasium vector wrapper around a `HostEnv` as a `HostEnv`.

    Args:
      env: the environment.
      make: num_envs -> the same environment with `num_envs` copies. `Wrapped.evaluation` needs it if a wrapper has
        arrays for a fixed number of environments.

    Raises:
      UserError: `env` is neither of these; see `check_host_env`.
    """
    if _is_plain_wrapper(env):
        check_host_env(_innermost(env))
        env = Wrapped(env, make)
    check_host_env(env)
    return env


class Wrapped(gymnasium.vector.VectorWrapper):
    """A `HostEnv` inside gymnasium's vector wrappers, which have only `reset` and `step`.

    `send` stores the actions and `recv` steps, so the environment does not step while the caller does other work. A
    wrapper with its own `send` and `recv` is an exception. If a wrapper changes observations, `frame_stack` is 0, so
    that a replay stores whole stacks, unless the wrapper has its own `frame_stack`. Evaluations use the same wrappers
    around the evaluation environment of the wrapped one.

    Args:
      env: the outermost wrapper.
      make: num_envs -> the same wrapped environment with `num_envs` copies; None copies the wrappers.
    """

    def __init__(self, env: gymnasium.vector.VectorWrapper, make: Callable[[int], Any] | None = None):
        super().__init__(env)
        self._make = make
        self._wrappers, self._innermost = _layers(env), _innermost(env)
        self._spec = spec_from_spaces(env.single_observation_space, env.single_action_space)
        self._actions: np.ndarray | None = None

    @property
    def spec(self) -> Spec:  # type: ignore[override]  # gymnasium's is the entry of its registry
        return self._spec

    @property
    def frame_stack(self) -> int:
        for wrapper in self._wrappers:
            if hasattr(wrapper, "frame_stack"):
                return wrapper.frame_stack
            if isinstance(wrapper, gymnasium.vector.VectorObservationWrapper):
                return 0
        same = self._spec.observation == self._innermost.spec.observation
        return self._innermost.frame_stack if same else 0

    @property
    def frame_skip(self) -> int:
        return self._innermost.frame_skip

    @property
    def name(self) -> str:
        return self._innermost.name

    @property
    def evaluation_epsilon(self) -> float:
        return self._innermost.evaluation_epsilon

    def send(self, actions: Shaped[np.ndarray, "N *action"]) -> None:
        if hasattr(self.env, "send"):
            self.env.send(actions)
            return
        if self._actions is not None:
            raise RuntimeError("send was called twice without recv")
        self._actions = checked_actions(actions, self._spec, self.num_envs, self.name)

    def recv(self) -> Step:
        if hasattr(self.env, "recv"):
            return self.env.recv()
        actions, self._actions = self._actions, None
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        return _as_agents_see(observations), np.asarray(rewards, np.float32), terminated, truncated, info

    # Releases of gymnasium differ in the types of a wrapper.
    def step(self, actions: Shaped[np.ndarray, "N *action"]) -> Step:  # type: ignore[override, unused-ignore]
        self.send(actions)
        return self.recv()

    def reset(  # type: ignore[override, unused-ignore]
        self, *, seed: int | Integer[np.ndarray, "N"] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        if self._actions is not None and options:
            raise RuntimeError("a reset of single environments must not stand between send and recv")
        self._actions = None
        observations, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # gymnasium: int
        return _as_agents_see(observations), info

    def evaluation(self, num_envs: int) -> HostEnv:
        """The same wrappers around the evaluation environment of the wrapped one.

        Raises:
          UserError: the copy of a wrapper does not work with `num_envs` environments.
        """
        if hasattr(self.env, "evaluation"):
            return as_host_env(self.env.evaluation(num_envs))
        innermost = self._innermost.evaluation(num_envs)
        env: Any = innermost
        if self._make is not None:
            env = self._make(num_envs)
            trained_in = _innermost(env)
            _layers(env)[-1].env = innermost
            trained_in.close()
        else:
            # The memo makes deepcopy use `innermost` instead of copying the wrapped environment.
            memo: dict[int, Any] = {id(self._innermost): innermost}
            for wrapper in reversed(self._wrappers):
                env = copy.deepcopy(wrapper, memo)
        try:
            return as_host_env(env, self._make)
        except (UserError, ValueError) as error:
            raise UserError(
                f"env: {class_name(self.env)} cannot be copied for the evaluation ({error}); give it a method "
                "evaluation(num_envs)"
            ) from error

    def describe(self) -> str:
        names = listed([type(wrapper).__name__ for wrapper in self._wrappers])
        inner = self._innermost.describe()
        return f"{inner}; wrapped in {names}" if inner else f"wrapped in {names}"

    def facts(self) -> dict[str, Any]:
        return self._innermost.facts() | {"wrappers": [class_name(wrapper) for wrapper in self._wrappers]}


def _is_plain_wrapper(env: Any) -> bool:
    return isinstance(env, gymnasium.vector.VectorWrapper) and not isinstance(env, HostEnv)


def _layers(env: Any) -> list[gymnasium.vector.VectorWrapper]:
    """The wrappers around the innermost `HostEnv`, outermost first."""
    layers = []
    while _is_plain_wrapper(env):
        layers.append(env)
        env = env.env
    return layers


def _innermost(env: Any) -> Any:
    return _layers(env)[-1].env if _is_plain_wrapper(env) else env


def _as_agents_see(observations: Any) -> Any:
    """Observations in the dtypes of `spec_from_spaces`."""
    return jax.tree.map(lambda array: array.astype(observation_dtype(array.dtype), copy=False), observations)
