"""N copies of a `JaxEnv` as a `HostEnv`. One compiled program steps all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import gymnasium.vector
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Array, Bool, Float32, Integer, PyTree, Shaped, UInt8

from rlcls._errors import UserError
from rlcls.spec import Spec

from .autoreset import Autoreset, Playing, select
from .base import JaxEnv, checked_actions, reset_arguments


class JaxVectorEnv(gymnasium.vector.VectorEnv):
    """N copies of a `JaxEnv` that step in one compiled program: a `HostEnv`.

    `rlcls.envs.autoreset.Autoreset` steps and resets them. All random numbers come from an environment's last seed.

    A `JaxEnv` may have three more methods: `expert(state) -> action`, a scripted policy; `draw(state) -> uint8
    [height, width, 3]`, an image of one state, which is not traced; `facts() -> dict`, its options.

    Args:
      env: the environment to copy, whose observations are one array.
      num_envs: N.
      name: the task's name.
      history: with w above 1, an observation is the last w observations of the episode, [w, *observation], with zeros
        before the first.

    Raises:
      UserError: a number is below 1.
    """

    spec: Spec  # type: ignore[assignment]  # gymnasium's is the entry of its registry
    frame_skip = 1
    evaluation_epsilon = 0.0

    def __init__(self, env: JaxEnv, num_envs: int, *, name: str, history: int = 1):
        for option, value in (("num_envs", num_envs), ("history", history)):
            if value < 1:
                raise UserError(f"env.{option} must be at least 1, not {value}")
        self.env, self.num_envs, self.name = env, num_envs, name
        self.frame_stack = history if history > 1 else 0
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        observation = env.spec.observation
        shape = (history, *observation.shape) if self.frame_stack else observation.shape
        self.spec = env.spec._replace(observation=jax.ShapeDtypeStruct(shape, observation.dtype))
        self.single_observation_space = _observation_space(shape, observation.dtype)
        self.single_action_space = _action_space(env.spec)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self._carry: Playing | None = None
        # The experts' assumed states, last actions and whether the assumed episode has ended; and whether there was a
        # step since.
        self._script: tuple[PyTree[Array], Array, Array] | None = None
        self._stepped = False
        self._actions: np.ndarray | None = None
        self._episode_start = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | Integer[np.ndarray, "N"] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Shaped[np.ndarray, "N *observation"], dict[str, Any]]:
        """Starts an episode in every environment, or in those of options["reset_mask"]; see `HostEnv`."""
        seeds, mask = reset_arguments(seed, options, self.num_envs)
        if self._actions is not None and not mask.all():
            raise RuntimeError("a reset of single environments must not stand between send and recv")
        self._actions = None
        if self._carry is None:
            seeds = np.random.SeedSequence().generate_state(self.num_envs) if seeds is None else seeds
            self._carry, mask = self._programs.begin(jax.device_put(seeds)), np.ones(self.num_envs, bool)
        elif seeds is None:
            self._carry = self._programs.again(self._carry, jax.device_put(mask))
        else:
            self._carry = self._programs.reset(self._carry, *jax.device_put((mask, seeds)))
        self._episode_start = self._episode_start | mask
        return self._observations(), {"episode_start": self._episode_start}

    def send(self, actions: Shaped[np.ndarray, "N *action"]) -> None:
        """Stores the actions for `recv`; see `HostEnv`."""
        if self._actions is not None:
            raise RuntimeError("send was called twice without recv")
        self._actions = checked_actions(actions, self.spec, self.num_envs, self.name)

    def recv(
        self,
    ) -> tuple[
        Shaped[np.ndarray, "N *observation"],
        Float32[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        dict[str, Any],
    ]:
        """Steps every environment: observations, rewards, terminated, truncated, info; see `HostEnv`."""
        if self._actions is None:
            raise RuntimeError("recv was called without send")
        actions, self._actions, self._stepped = self._actions, None, True
        self._carry, outcome = self._programs.step(self._carry, jax.device_put(actions))
        rewards, terminated, truncated, starts = (np.array(part) for part in jax.device_get(outcome))
        self._episode_start = starts
        return self._observations(), rewards, terminated, truncated, {"episode_start": starts}

    def step(self, actions: Shaped[np.ndarray, "N *action"]) -> Any:
        """`send` followed by `recv`."""
        self.send(actions)
        return self.recv()

    @property
    def scripted_actions(self) -> Callable[..., Shaped[np.ndarray, "N *action"]]:
        """(look=None) -> the actions of the environment's scripted policy; see `HostEnv`.

        Raises:
          AttributeError: the environment has no `expert`.
        """
        if not hasattr(self.env, "expert"):
            raise AttributeError(f"{self.name} has no scripted policy")
        return self._scripted_actions

    def _scripted_actions(self, look: Bool[np.ndarray, "N"] | None = None) -> Shaped[np.ndarray, "N *action"]:
        assert self._carry is not None, "reset comes first"
        looks = np.ones(self.num_envs, bool) if look is None else look | self._episode_start
        if self._script is None:
            looks = np.ones(self.num_envs, bool)
            action = self.spec.action
            actions = jnp.zeros((self.num_envs, *action.shape), action.dtype)
            self._script = self._carry.state, actions, jnp.zeros(self.num_envs, bool)
        arguments = jax.device_put((looks, np.full(self.num_envs, self._stepped)))
        self._script = self._programs.script(self._carry, *self._script, *arguments)
        self._stepped = False
        return np.array(jax.device_get(self._script[1]))

    @property
    def pure(self) -> JaxVectorEnv:
        """Itself: the environments that a compiled loop can step inside its program."""
        return self

    def evaluation(self, num_envs: int) -> JaxVectorEnv:
        """`num_envs` copies of the same task, because evaluations have the same rules as training."""
        return JaxVectorEnv(self.env, num_envs, name=self.name, history=max(1, self.frame_stack))

    @property
    def render_twin(self) -> Callable[[], Film]:
        """() -> one environment whose observations are images; see `rlcls.evaluation.film`.

        Raises:
          AttributeError: the environment has no `draw`.
        """
        if not hasattr(self.env, "draw"):
            raise AttributeError(f"{self.name} cannot be drawn")
        return lambda: Film(self.evaluation(1))

    def describe(self) -> str:
        """The task's parameters in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.facts().items() if name != "name")

    def facts(self) -> dict[str, Any]:
        """The name, the history and the fields of the `JaxEnv`."""
        own: dict[str, Any] = getattr(self.env, "facts", dict)()
        history = {"history": self.frame_stack} if self.frame_stack else {}
        return {"name": self.name, **own, **history}

    def __repr__(self) -> str:
        return f"JaxVectorEnv({self.name!r}, num_envs={self.num_envs})"

    @property
    def state(self) -> PyTree[np.ndarray]:
        """The states of the `JaxEnv`, with a leading axis of environments."""
        assert self._carry is not None, "reset comes first"
        return jax.device_get(self._carry.state)

    def _observations(self) -> Shaped[np.ndarray, "N *observation"]:
        assert self._carry is not None
        return np.array(jax.device_get(self._carry.observation))

    @functools.cached_property
    def _programs(self) -> _Programs:
        return _Programs(self.env, self.frame_stack)


class _Programs:
    """The compiled programs of `JaxVectorEnv`: vmapped functions of one environment."""

    def __init__(self, env: JaxEnv, history: int):
        episodes = Autoreset(env, history)

        def begin(seed: Array) -> Playing:
            return episodes.begin(jax.random.key(seed))

        def script(
            one: Playing, twin: PyTree[Array], action: Array, over: Array, look: Array, stepped: Array
        ) -> tuple[PyTree[Array], Array, Array]:
            """The state that the expert assumes, its action there, and whether it assumes that the episode has ended.

            `twin`, `action` and `over` are those of the previous call. The twin steps with the expert's action if the
            environment has stepped, and is replaced by the true state if the expert looks. A twin whose episode has
            ended no longer steps, so the expert repeats its last action until it looks.
            """
            # The environment's step used the same key, so without disturbances the twin equals the environment.
            key = jax.random.fold_in(one.key, one.steps - 1)
            stepped_twin, _, _, ended, _ = env.step(twin, action, key)
            steps = stepped & ~over
            over = (over | (steps & ended)) & ~look
            twin = select(look, one.state, select(steps & ~ended, stepped_twin, twin))
            return twin, env.expert(twin), over  # type: ignore[attr-defined]

        self.begin = jax.jit(jax.vmap(begin))
        self.again = jax.jit(jax.vmap(lambda one, mask: select(mask, episodes.again(one), one)))
        self.reset = jax.jit(jax.vmap(lambda one, mask, seed: select(mask, begin(seed), one)))
        self.step = jax.jit(jax.vmap(episodes.step))
        self.script = jax.jit(jax.vmap(script))


class Film:
    """One environment whose observations are images [1, 1, height, width, 3]; see `rlcls.evaluation.film`."""

    fps = 10.0

    def __init__(self, env: JaxVectorEnv):
        self._env = env

    def reset(
        self, *, seed: Integer[np.ndarray, "1"]
    ) -> tuple[UInt8[np.ndarray, "1 1 h w 3"], dict[str, Any]]:
        _, info = self._env.reset(seed=seed)
        return self._image(), info

    def step(self, actions: Shaped[np.ndarray, "1 *action"]) -> tuple[Any, ...]:
        _, *rest = self._env.step(actions)
        return self._image(), *rest

    def close(self) -> None:
        self._env.close()

    def _image(self) -> UInt8[np.ndarray, "1 1 h w 3"]:
        one = jax.tree.map(lambda leaf: leaf[0], self._env.state)
        return self._env.env.draw(one)[None, None]  # type: ignore[attr-defined]


def _observation_space(shape: tuple[int, ...], dtype: np.dtype) -> gymnasium.Space:
    if np.dtype(dtype).kind == "b":
        return gymnasium.spaces.Box(0, 1, shape, np.bool_)  # type: ignore[arg-type]
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else None
    low, high = (limits.min, limits.max) if limits else (-np.inf, np.inf)
    return gymnasium.spaces.Box(low, high, shape, dtype)  # type: ignore[arg-type]


def _action_space(spec: Spec) -> gymnasium.Space:
    if spec.action_range is not None:
        low, high = spec.action_range
        return gymnasium.spaces.Box(low, high, dtype=np.float32)
    if spec.action.shape:
        return gymnasium.spaces.MultiDiscrete(np.full(spec.action.shape, spec.num_actions))
    return gymnasium.spaces.Discrete(spec.num_actions or 0)
