"""The interfaces of environments: `HostEnv` runs on the host, and `JaxEnv` inside jitted programs.

The functions seed and check what passes through these interfaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, Integer, Key, PyTree, Shaped, UInt32

from rlcls._errors import UserError
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
