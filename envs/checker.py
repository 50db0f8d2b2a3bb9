"""Checks that an environment is a `HostEnv`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Shaped

from rlcls._errors import UserError, class_name, listed, one_line
from rlcls.spec import Spec

from .base import HostEnv, check_finite


def check_host_env(env: Any) -> None:
    """Checks with two resets and a step that `env` is a `HostEnv` and that its observations match its `spec`.

    Raises:
      UserError: they do not; the message names what is missing or wrong.
    """
    kind = class_name(env)
    missing = [name for name in _members(HostEnv) if not hasattr(env, name)]
    if missing:
        raise UserError(f"env: {kind} has no {listed(missing)}; rlcls.envs.base.HostEnv lists what it needs")
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
            f"env: {class_name(env)}.{method} returns observations {_describe(observations)}, but its spec says "
            f"{_describe(expected)} for {env.num_envs} environments"
        )


def _check_reset_mask(env: HostEnv, starts_before: Bool[np.ndarray, "N"]) -> None:
    """Raises a UserError if a reset with a mask also resets environments that the mask does not select.

    Without this check such an environment would fail only after thousands of steps, at a loop's first partial reset.
    """
    kind = class_name(env)
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
            f"env: {class_name(env)} has no episode_start in the info of {method}: bool [{env.num_envs}], which says "
            "which observations start an episode"
        )
    return np.array(info["episode_start"])


def _some_actions(env: HostEnv) -> Shaped[np.ndarray, "N *action"]:
    """A valid action for each environment."""
    action = np.zeros((env.num_envs, *env.spec.action.shape), env.spec.action.dtype)
    return action if env.spec.action_range is None else np.clip(action, *env.spec.action_range)


def _describe(tree: Any) -> str:
    """The name, dtype and shape of each leaf."""
    leaves = [
        f"{jax.tree_util.keystr(path)} "
        + (f"{leaf.dtype} {list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return ", ".join(leaf.strip() for leaf in leaves) or "nothing"


def _batched(observation: Any, num_envs: int) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_envs, *leaf.shape), leaf.dtype), observation)


def _members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]
