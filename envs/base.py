"""The interfaces of environments: `HostEnv` runs on the host, and `JaxEnv` inside jitted programs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
import gymnasium.vector
import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, Integer, Key, PyTree, Shaped, UInt32

from rlcls._errors import UserError, one_line
from rlcls.spec import Spec

Observations: TypeAlias = PyTree[Shaped[np.ndarray, "N ..."]]
"""One observation of each environment: arrays as in `Spec.observation`, with a leading batch axis."""

Step: TypeAlias = tuple[
    Observations,
    Float32[np.ndarray, "N"],
    Bool[np.ndarray, "N"],
    Bool[np.ndarray, "N"],
    dict[str, Any],
]
"""A step returns observations, raw rewards, terminated, truncated and info."""


@runtime_checkable
class HostEnv(Protocol):
    """N environments that step together: gymnasium's vector interface with next-step autoreset.

    The step that ends an episode returns its final observation. The next step of that environment ignores its action,
    returns the first observation of a new episode with reward 0, and sets `info["episode_start"]`. The state of an
    environment is a function of its last seed and of the actions since.

    Two methods are optional. `scripted_actions(look=None)` returns the actions [N, *action] of the environment's own
    policy in its current state, which `rlcls.collect` records. Where `look` (bool [N]) is False, the policy does not
    see the state; it assumes that its own actions since its last look were played. It always sees the first state of an
    episode. A second call before the next step returns the same actions. `render_twin()` returns an environment for
    films; see `rlcls.evaluation.film`.
    """

    @property
    def num_envs(self) -> int:
        """N."""

    @property
    def spec(self) -> Spec:
        """The observations and actions."""

    @property
    def frame_stack(self) -> int:
        """F if an observation [F, ...] is the last F frames of its episode, with zeros before the first; else 0.

        With F > 0 a replay stores only the newest frame `observations[:, -1]` of each step.
        """

    @property
    def frame_skip(self) -> int:
        """Emulator frames per agent step; 1 without an emulator."""

    @property
    def name(self) -> str:
        """The name of the task, such as "Pong" or "CartPole-v1"."""

    @property
    def evaluation_epsilon(self) -> float:
        """The probability of a random action in evaluations."""

    def reset(
        self, *, seed: int | Integer[np.ndarray, "N"] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Starts an episode in every environment, or in those that a mask selects.

        Args:
          seed: one for each environment, also for those that are not reset. An environment that was reset behaves like
            a new one with that seed. An int is passed through `environment_seeds`. With None the random streams
            continue.
          options: {"reset_mask": bool [N]} resets only the environments where the mask is True. The others keep
            their state, and their current observations are returned.

        Returns:
          Observations, and an info whose `episode_start` [N] says which of them start an episode.
        """

    def step(self, actions: Shaped[np.ndarray, "N *action"]) -> Step:
        """`send` followed by `recv`."""

    def send(self, actions: Shaped[np.ndarray, "N *action"]) -> None:
        """Starts a step and may return before it is done; `recv` must follow.

        Raises:
          UserError: an action does not exist. The environments of this package then play nothing.
        """

    def recv(self) -> Step:
        """Waits for the step that `send` started."""

    def evaluation(self, num_envs: int) -> HostEnv:
        """A new environment with `num_envs` copies, for the evaluation of agents that are trained in this one."""

    def describe(self) -> str:
        """A readable summary of the task in one line; may be empty."""

    def facts(self) -> dict[str, Any]:
        """Everything that determines the task, as JSON values, for the records of a run."""

    def close(self) -> None:
        """Frees threads and windows."""


@runtime_checkable
class JaxEnv(Protocol):
    """One environment as pure functions, for `jax.jit` and `jax.vmap`. It does not reset by itself."""

    @property
    def spec(self) -> Spec:
        """The observations and actions."""

    def reset(self, key: Key[Array, ""]) -> tuple[Any, PyTree[Array]]:
        """The first state of an episode, and its observation."""

    def step(
        self, state: Any, action: Any, key: Key[Array, ""]
    ) -> tuple[Any, PyTree[Array], Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """One step: (next state, observation, reward, terminated, truncated)."""


def environment_seeds(seed: int | Sequence[int], num_envs: int) -> UInt32[np.ndarray, "N"]:
    """Seeds for `num_envs` environments. Other values of `seed` give unrelated seeds.

    Args:
      seed: one number or several, such as (seed of the run, number of the reset).
      num_envs: N.

    >>> environment_seeds((0, 1), 2).tolist()
    [3964924996, 1358922860]
    """
    # seed + i would make environment 1 of seed 0 the twin of environment 0 of seed 1.
    return np.random.SeedSequence(seed).generate_state(num_envs)


def reset_arguments(
    seed: int | Integer[np.ndarray, "N"] | None, options: dict[str, Any] | None, num_envs: int
) -> tuple[Integer[np.ndarray, "N"] | None, Bool[np.ndarray, "N"]]:
    """The normalised arguments of `HostEnv.reset`: a seed for each environment, or None, and the mask.

    Raises:
      ValueError: an option is unknown, the mask or the seeds have a wrong shape, or the mask selects nothing.
    """
    options = options or {}
    if set(options) - {"reset_mask"}:
        raise ValueError(f"reset takes the option reset_mask, not {sorted(set(options) - {'reset_mask'})}")
    mask = options.get("reset_mask")
    mask = np.ones(num_envs, bool) if mask is None else np.asarray(mask)
    if mask.shape != (num_envs,) or mask.dtype != bool or not mask.any():
        raise ValueError(f"reset_mask must be bool [{num_envs}] with at least one True, not {mask!r}")
    if isinstance(seed, (int, np.integer)):
        seed = environment_seeds(int(seed), num_envs)
    if seed is not None and np.shape(seed) != (num_envs,):
        raise ValueError(f"reset needs a seed for each of {num_envs} environments, not {np.shape(seed)}")
    return None if seed is None else np.asarray(seed), mask


def checked_actions(
    actions: Shaped[np.ndarray, "N *action"], spec: Spec, num_envs: int, name: str
) -> Shaped[np.ndarray, "N *action"]:
    """A copy of the actions in the dtype of `spec.action`.

    Args:
      actions: one for each environment.
      spec: the spec of the environment.
      num_envs: N.
      name: the task, for the message.

    Raises:
      UserError: the actions have a wrong shape, discrete actions are not integers in the spec's range, or continuous
        actions are not finite. Continuous actions outside their range are not checked here.
    """
    array = np.asarray(actions)
    shape = (num_envs, *spec.action.shape)
    if array.shape != shape:
        raise UserError(f"{name}: actions must have shape {shape}, not {array.shape}")
    if spec.num_actions is None:
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise UserError(f"{name}: actions must be finite numbers, not {array.tolist()}")
    elif array.dtype.kind not in "iu":
        raise UserError(f"{name}: actions must be integers, not {array.dtype}")
    elif (outside := (array < 0) | (array >= spec.num_actions)).any():
        raise UserError(
            f"{name} has {spec.num_actions} actions, 0 to {spec.num_actions - 1}, but the agent sent "
            f"{array[outside][0]}"
        )
    return array.astype(spec.action.dtype)


def check_finite(name: str, step: int, observations: Observations, rewards: np.ndarray | None = None) -> None:
    """Raises a UserError if a reward or a floating-point number in an observation is NaN or infinite.

    Args:
      name: the task, for the message.
      step: the number of the vector step that returned them; 0 for a reset.
      observations: [N, *observation], an array or a tree of arrays.
      rewards: [N]; None for a reset.
    """
    for leaf in [observations] if isinstance(observations, np.ndarray) else jax.tree.leaves(observations):
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            number = int(np.argwhere(~np.isfinite(leaf))[0, 0])
            raise UserError(f"{name}: an observation of environment {number} is not finite at step {step:,}")
    if rewards is not None and not np.isfinite(rewards).all():
        number = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise UserError(f"{name}: the reward of environment {number} is {rewards[number]} at step {step:,}")


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


def check_host_env(env: Any) -> None:
    """Checks with two resets and a step that `env` is a `HostEnv` and that its observations match its `spec`.

    Raises:
      UserError: they do not; the message names what is missing or wrong.
    """
    kind = _class_name(env)
    missing = [name for name in _members(HostEnv) if not hasattr(env, name)]
    if missing:
        raise UserError(
            f"env: {kind} has no {_enumerate(missing)}; rlcls.envs.base.HostEnv lists what it needs"
        )
    if not isinstance(env.spec, Spec):
        raise UserError(f"env: {kind}.spec must be an rlcls.spec.Spec, not {type(env.spec).__name__}")
    observations, info = env.reset()  # without seeds, because Atari loads its ROMs again for new seeds
    _episode_start(env, info, "reset")
    _check_observations(env, observations, "reset")
    check_finite(env.name, 0, observations)
    played = env.step(_some_actions(env))
    if not (isinstance(played, tuple) and len(played) == 5):
        raise UserError(
            f"env: {kind}.step must return (observations, rewards, terminated, truncated, info), not "
            f"{len(played) if isinstance(played, tuple) else type(played).__name__}"
        )
    observations, rewards, terminated, truncated, info = played
    _check_observations(env, observations, "step")
    for name, values, letters, words in (
        ("rewards", rewards, "f", "floats"),
        ("terminated", terminated, "b", "bools"),
        ("truncated", truncated, "b", "bools"),
    ):
        if not (
            isinstance(values, np.ndarray)
            and values.shape == (env.num_envs,)
            and values.dtype.kind in letters
        ):
            raise UserError(
                f"env: {kind}.step must return {name} as {env.num_envs} {words}, one for each environment, not "
                f"{_describe(values)}"
            )
    check_finite(env.name, 1, observations, rewards)
    _check_reset_mask(env, _episode_start(env, info, "step"))


def _check_observations(env: HostEnv, observations: Any, method: str) -> None:
    """Raises a UserError unless observations are arrays in the shapes and dtypes of the environment's spec."""
    expected = _batched(env.spec.observation, env.num_envs)
    if _describe(observations) != _describe(expected):
        raise UserError(
            f"env: {_class_name(env)}.{method} returns observations {_describe(observations)}, but its spec says "
            f"{_describe(expected)} for {env.num_envs} environments"
        )


def _describe(tree: Any) -> str:
    """The name, dtype and shape of each leaf."""
    leaves = [
        f"{jax.tree_util.keystr(path)} "
        + (f"{leaf.dtype} {list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return ", ".join(leaf.strip() for leaf in leaves) or "nothing"


def _check_reset_mask(env: HostEnv, starts_before: Bool[np.ndarray, "N"]) -> None:
    """Raises a UserError if a reset with a mask also resets environments that the mask does not select.

    Without this check such an environment would fail only after thousands of steps, at a loop's first partial reset.
    """
    kind = _class_name(env)
    mask = np.arange(env.num_envs) == 0
    expected = starts_before | mask
    try:
        _, info = env.reset(options={"reset_mask": mask})
    except Exception as error:  # an environment that does not support the mask can raise any exception
        raise UserError(
            f"env: {kind}.reset fails with options={{'reset_mask': bool [{env.num_envs}]}}, which resets only the "
            f"environments where it is True ({type(error).__name__}: {one_line(error)})"
        ) from error
    starts = _episode_start(env, info, "reset")
    if not np.array_equal(starts, expected):
        raise UserError(
            f"env: {kind}.reset must reset only the environments where options['reset_mask'] is True; after "
            f"{mask.tolist()} episode_start is {starts.tolist()} and should be {expected.tolist()}"
        )


def _episode_start(env: HostEnv, info: dict[str, Any], method: str) -> Bool[np.ndarray, "N"]:
    """A copy of `info["episode_start"]`.

    Raises:
      UserError: the info of this method has no `episode_start`.
    """
    if "episode_start" not in info:
        raise UserError(
            f"env: {_class_name(env)} has no episode_start in the info of {method}: bool [{env.num_envs}], which says "
            "which observations start an episode"
        )
    return np.array(info["episode_start"])


def _some_actions(env: HostEnv) -> Shaped[np.ndarray, "N *action"]:
    """A valid action for each environment."""
    action = np.zeros((env.num_envs, *env.spec.action.shape), env.spec.action.dtype)
    return action if env.spec.action_range is None else np.clip(action, *env.spec.action_range)


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
                f"env: {_class_name(self.env)} cannot be copied for the evaluation ({error}); give it a method "
                "evaluation(num_envs)"
            ) from error

    def describe(self) -> str:
        names = _enumerate([type(wrapper).__name__ for wrapper in self._wrappers])
        inner = self._innermost.describe()
        return f"{inner}; wrapped in {names}" if inner else f"wrapped in {names}"

    def facts(self) -> dict[str, Any]:
        return self._innermost.facts() | {"wrappers": [_class_name(wrapper) for wrapper in self._wrappers]}


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


def _observation(space: gymnasium.Space) -> Any:
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


def observation_dtype(dtype: Any) -> np.dtype:
    """The dtype that observations of `dtype` have for an agent."""
    if np.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    return np.dtype(dtype) if np.dtype(dtype).itemsize == 1 else np.dtype(np.int32)


def _batched(observation: Any, num_envs: int) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_envs, *leaf.shape), leaf.dtype), observation)


def _members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


def _class_name(env: Any) -> str:
    return f"{type(env).__module__}.{type(env).__qualname__}"


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
