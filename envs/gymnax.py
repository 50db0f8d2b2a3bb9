"""Environments of gymnax as `JaxEnv`s: MinAtar, classic control, and any other class with its interface.

gymnax's `step` starts a new episode by itself, so this module uses `step_env`, which does not.

Source: Lange 2022, "gymnax"; MinAtar: Young and Tian 2019.
"""

from __future__ import annotations

import colorsys
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Key, PyTree, UInt8

from rlcls._errors import UserError, class_name, install, nearest, one_line
from rlcls.spec import Spec

from .base import JaxEnv
from .jax_vector import JaxVectorEnv
from .spaces import observation_dtype

MINATAR = ("Asterix", "Breakout", "Freeway", "SpaceInvaders", "Seaquest")
_CELL = 8  # width in pixels of a cell of MinAtar's field, in films


class GymnaxState(NamedTuple):
    """gymnax's state, and the previous action."""

    env: PyTree[Array]
    action: PyTree[Array]


class GymnaxEnv:
    """An environment of gymnax, a `JaxEnv`.

    Args:
      env: an object with gymnax's `reset_env`, `step_env`, `is_truncated`, `observation_space` and `action_space`.
      params: its parameters; None uses its `default_params`.
      binary: whether observations are zeros and ones. They are then bool, which takes a quarter of the memory.
      sticky_actions: the probability that the previous action is repeated instead of the given one.

    Raises:
      UserError: the spaces have no Spec.
      ValueError: `sticky_actions` is not in [0, 1).
    """

    def __init__(self, env: Any, params: Any = None, *, binary: bool = False, sticky_actions: float = 0.0):
        if not 0 <= sticky_actions < 1:
            raise ValueError(f"sticky_actions must be at least 0 and below 1, not {sticky_actions}")
        self.env, self.params = env, env.default_params if params is None else params
        self._sticky = sticky_actions
        space = env.observation_space(self.params)
        if not hasattr(space, "shape"):
            raise UserError(
                f"observations of gymnax's {type(space).__name__} are not supported: they must be one array"
            )
        self._dtype = np.dtype(bool) if binary else observation_dtype(np.dtype(space.dtype))
        observation = jax.ShapeDtypeStruct(tuple(space.shape), self._dtype)
        actions = env.action_space(self.params)
        if hasattr(actions, "n"):
            self.spec = Spec(observation, jax.ShapeDtypeStruct((), np.int32), int(actions.n), None)
        else:
            low, high = (
                np.broadcast_to(np.asarray(end, np.float32), actions.shape)
                for end in (actions.low, actions.high)
            )
            self.spec = Spec(observation, jax.ShapeDtypeStruct(low.shape, np.float32), None, (low, high))

    def reset(self, key: Key[Array, ""]) -> tuple[GymnaxState, PyTree[Array]]:
        """The first state of an episode, and its observation."""
        observation, state = self.env.reset_env(key, self.params)
        action = self.spec.action
        # gymnax's first state contains Python numbers, but a state must keep its dtypes between steps.
        state = jax.tree.map(jnp.asarray, state)
        return GymnaxState(state, jnp.zeros(action.shape, action.dtype)), self._cast(observation)

    def step(
        self, state: GymnaxState, action: PyTree[ArrayLike], key: Key[Array, ""]
    ) -> tuple[GymnaxState, PyTree[Array], Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """One step. The end of an episode does not start a new one."""
        if self._sticky:
            key, sticky_key = jax.random.split(key)
            action = jnp.where(jax.random.uniform(sticky_key) < self._sticky, state.action, action)
        observation, env, reward, terminated, _ = self.env.step_env(key, state.env, action, self.params)
        truncated = self.env.is_truncated(env, self.params)
        env = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), env, state.env)
        reward, terminated = jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool)
        new = GymnaxState(env, jnp.asarray(action, self.spec.action.dtype))
        return new, self._cast(observation), reward, terminated, truncated & ~terminated

    def facts(self) -> dict[str, Any]:
        """The package's version and the parameters."""
        import importlib.metadata

        params = {name: value for name, value in vars(self.params).items() if isinstance(value, (int, float))}
        return {"gymnax": importlib.metadata.version("gymnax"), "sticky_actions": self._sticky, **params}

    def _cast(self, observation: PyTree[Array]) -> PyTree[Array]:
        return jnp.asarray(observation).astype(self._dtype)


class MinAtarEnv(GymnaxEnv):
    """A game of MinAtar: observations bool [10, 10, channels], episodes of at most 1,000 steps (Freeway 2,500)."""

    def __init__(self, env: Any, *, sticky_actions: float = 0.0):
        super().__init__(env, binary=True, sticky_actions=sticky_actions)

    def draw(self, state: GymnaxState) -> UInt8[np.ndarray, "height width 3"]:
        """An image of the field. Each channel has its own colour, and later channels cover earlier ones."""
        field = np.asarray(self.env.get_obs(state.env)) > 0
        image = np.full((*field.shape[:2], 3), 24, np.uint8)
        for channel in range(field.shape[-1]):
            colour = colorsys.hsv_to_rgb(channel / field.shape[-1], 0.65, 0.95)
            image[field[..., channel]] = [round(255 * part) for part in colour]
        return image.repeat(_CELL, axis=0).repeat(_CELL, axis=1)


def minatar(game: str, num_envs: int, history: int = 1, sticky_actions: float = 0.0) -> JaxVectorEnv:
    """`num_envs` copies of a game of MinAtar.

    Args:
      game: a name of `MINATAR`.
      num_envs: environments that step together.
      history: number of stacked observations; see `JaxVectorEnv`.
      sticky_actions: see `GymnaxEnv`; the original MinAtar uses 0.1.

    Raises:
      UserError: the game is unknown, or gymnax is not installed.
      ValueError: an option is out of range.
    """
    game = game.removesuffix("-MinAtar")
    if game not in MINATAR:
        raise UserError(f"unknown game {game!r} of MinAtar{nearest(game, MINATAR)}")
    env, _ = _gymnax().make(f"{game}-MinAtar")
    return JaxVectorEnv(
        MinAtarEnv(env, sticky_actions=sticky_actions), num_envs, name=f"{game}-MinAtar", history=history
    )


def make(id: str, num_envs: int, history: int = 1, sticky_actions: float = 0.0) -> JaxVectorEnv:
    """`num_envs` copies of an environment that gymnax registers, such as CartPole-v1.

    Raises:
      UserError: the name is unknown, or gymnax is not installed.
      ValueError: an option is out of range.
    """
    gymnax = _gymnax()
    names = gymnax.registered_envs
    if id not in names:
        raise UserError(f"unknown environment {id!r} of gymnax{nearest(id, names)}")
    env, params = gymnax.make(id)
    return JaxVectorEnv(
        GymnaxEnv(env, params, sticky_actions=sticky_actions), num_envs, name=id, history=history
    )


def _gymnax() -> Any:
    try:
        import gymnax
    except ImportError as error:
        raise UserError(f"env: gymnax cannot be imported ({error}): {install('minatar')}") from error
    return gymnax


def as_jax_env(env: Any) -> JaxEnv | None:
    """An environment of pure functions as a `JaxEnv`: itself, or gymnax's in a `GymnaxEnv`. Others give None.

    Raises:
      UserError: `reset` or `step` of a `JaxEnv` returns something else than the interface says.
    """
    if all(hasattr(env, name) for name in ("reset_env", "step_env", "default_params", "is_truncated")):
        return GymnaxEnv(env)
    theirs = isinstance(env, (gymnasium.Env, gymnasium.vector.VectorEnv))
    if theirs or hasattr(env, "num_envs") or not isinstance(env, JaxEnv):
        return None
    kind, key = class_name(env), jax.eval_shape(jax.random.key, 0)
    try:
        first = jax.eval_shape(env.reset, key)
        if not (isinstance(first, tuple) and len(first) == 2):
            raise UserError(f"env: {kind}.reset must return (state, observation)")
        played = jax.eval_shape(env.step, first[0], env.spec.action, key)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"env: {kind} is not a rlcls.envs.base.JaxEnv: {one_line(error)}") from error
    if not (isinstance(played, tuple) and len(played) == 5):
        raise UserError(f"env: {kind}.step must return (state, observation, reward, terminated, truncated)")
    before, after = (jax.tree.structure(each[0]) for each in (first, played))
    if str(before) != str(after):
        raise UserError(f"env: {kind}.step must return a state of the same structure as {kind}.reset")
    return env
