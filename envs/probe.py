"""Five probe MDPs whose Q-values are known in closed form. Each detects one kind of bug.

An agent that fails on `constant` cannot fit a value. One that fails on `observation` ignores its input, on `two_step`
it does not discount or bootstrap, on `action` it ignores actions, and on `policy` it cannot combine inputs and actions.

Source: Andy Jones, "Debugging reinforcement learning systems" (andyljones.com/posts/rl-debugging.html).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import gymnasium.vector
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Integer, Key, Shaped

from rlcls._errors import UserError, nearest
from rlcls.spec import Spec

from .base import checked_actions, reset_arguments
from .jax_vector import JaxVectorEnv
from .spaces import spec_from_spaces

_STACK, _SIDE = 4, 84  # frames and pixels, as on Atari


@dataclasses.dataclass(frozen=True)
class Probe:
    """An MDP with S states and A actions: a `JaxEnv`. Actions affect rewards only, not the next state.

    Attributes:
      name: its name in `PROBES`.
      features: [S], the observed number of each state: -1, 0 or 1.
      rewards: [S][A].
      successors: [S], the next state; None ends the episode.
      starts: the equally likely first states of an episode.
      closed_form: gamma -> Q [S][A].
    """

    name: str
    features: tuple[float, ...]
    rewards: tuple[tuple[float, ...], ...]
    successors: tuple[int | None, ...]
    starts: tuple[int, ...]
    closed_form: Callable[[float], list[list[float]]]

    @property
    def num_states(self) -> int:
        return len(self.features)

    @property
    def num_actions(self) -> int:
        return len(self.rewards[0])

    @property
    def spec(self) -> Spec:
        """One float32, and `num_actions` actions."""
        observation, action = jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((), np.int32)
        return Spec(observation, action, self.num_actions, None)

    def q_values(self, gamma: float) -> Float[np.ndarray, "S A"]:
        """The exact optimal action values.

        >>> PROBES["probe/two_step"].q_values(0.5).tolist()
        [[0.5], [1.0]]
        """
        return np.asarray(self.closed_form(gamma), np.float64)

    def observations(self, *, pixels: bool = False) -> Shaped[np.ndarray, "S *observation"]:
        """The observation of each state: float32 [S, 1], or uint8 [S, 4, 84, 84] with the episode's earlier frames."""
        if not pixels:
            return np.asarray(self.features, np.float32)[:, None]
        stacks = np.zeros((self.num_states, _STACK, _SIDE, _SIDE), np.uint8)
        for start in self.starts:
            stack = stacks[start]
            seen: int | None = start
            while seen is not None:
                stacks[seen] = stack = np.concatenate([stack[1:], self._frame(seen)[None]])
                seen = self.successors[seen]
        return stacks

    def reset(self, key: Key[Array, ""]) -> tuple[Int32[Array, ""], Float32[Array, "1"]]:
        """A random first state, and its observation."""
        state = jax.random.choice(key, jnp.asarray(self.starts, jnp.int32))
        return state, jnp.asarray(self.features, jnp.float32)[state, None]

    def step(
        self, state: Int[ArrayLike, ""], action: Int[ArrayLike, ""], key: Key[Array, ""]
    ) -> tuple[Int32[Array, ""], Float32[Array, "1"], Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """One step. The end of an episode does not start a new one.

        Args:
          state: from `reset` or `step`.
          action: 0 <= action < num_actions.
          key: unused, because only the first state is random.

        Returns:
          Next state, observation, reward, terminated, truncated (always False). The final observation of an episode
          equals the one before it.
        """
        del key
        reward = jnp.asarray(self.rewards, jnp.float32)[state, action]
        terminated = jnp.asarray([after is None for after in self.successors])[state]
        state = jnp.asarray(self._after(), jnp.int32)[state]
        observation = jnp.asarray(self.features, jnp.float32)[state, None]
        return state, observation, reward, terminated, jnp.zeros_like(terminated)

    def _after(self) -> list[int]:
        return [state if after is None else after for state, after in enumerate(self.successors)]

    def _frame(self, state: int) -> np.ndarray:
        # No frame is black, because zeros in a stack mean a missing frame.
        return np.full((_SIDE, _SIDE), 170 + 85 * self.features[state], np.uint8)


_PROBES = (
    Probe(
        "probe/constant",
        features=(0.0,),
        rewards=((1.0,),),
        successors=(None,),
        starts=(0,),
        closed_form=lambda gamma: [[1.0]],
    ),
    Probe(
        "probe/observation",
        features=(-1.0, 1.0),
        rewards=((-1.0,), (1.0,)),
        successors=(None, None),
        starts=(0, 1),
        closed_form=lambda gamma: [[-1.0], [1.0]],
    ),
    Probe(
        "probe/two_step",
        features=(-1.0, 1.0),
        rewards=((0.0,), (1.0,)),
        successors=(1, None),
        starts=(0,),
        closed_form=lambda gamma: [[gamma], [1.0]],
    ),
    Probe(
        "probe/action",
        features=(0.0,),
        rewards=((-1.0, 1.0),),
        successors=(None,),
        starts=(0,),
        closed_form=lambda gamma: [[-1.0, 1.0]],
    ),
    Probe(
        "probe/policy",
        features=(-1.0, 1.0),
        rewards=((1.0, -1.0), (-1.0, 1.0)),
        successors=(None, None),
        starts=(0, 1),
        closed_form=lambda gamma: [[1.0, -1.0], [-1.0, 1.0]],
    ),
)
PROBES: dict[str, Probe] = {probe.name: probe for probe in _PROBES}


class ProbeVectorEnv(gymnasium.vector.VectorEnv):
    """N copies of a probe: a `HostEnv`.

    With pixels, a stack has zeros before the first frame of an episode, as on Atari.
    """

    spec: Spec  # type: ignore[assignment]  # gymnasium's is the entry of its registry
    frame_skip = 1
    evaluation_epsilon = 0.0

    def __init__(self, probe: Probe, num_envs: int, *, pixels: bool = False):
        if num_envs < 1:
            raise UserError(f"env.num_envs must be at least 1, not {num_envs}")
        self.probe = probe
        self.name = probe.name
        self.num_envs = num_envs
        self.frame_stack = _STACK if pixels else 0
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        if pixels:
            self.single_observation_space = gymnasium.spaces.Box(0, 255, (_STACK, _SIDE, _SIDE), np.uint8)
        else:
            self.single_observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(probe.num_actions)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self.spec = spec_from_spaces(self.single_observation_space, self.single_action_space)
        self._pixels = pixels
        self._rewards = np.asarray(probe.rewards, np.float32)
        self._ends = np.asarray([after is None for after in probe.successors])
        self._after = np.asarray(probe._after())
        self._frames = np.stack([probe._frame(state) for state in range(probe.num_states)])
        self._features = probe.observations()
        self._streams = [np.random.default_rng() for _ in range(num_envs)]
        self._states = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, bool)
        self._episode_start = np.zeros(num_envs, bool)
        self._stacks = np.zeros((num_envs, _STACK, _SIDE, _SIDE), np.uint8) if pixels else None
        self._actions: np.ndarray | None = None

    def reset(
        self, *, seed: int | Integer[np.ndarray, "N"] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Shaped[np.ndarray, "N *observation"], dict[str, np.ndarray]]:
        """Starts an episode in every environment, or in those of options["reset_mask"]; see `HostEnv`."""
        seeds, mask = reset_arguments(seed, options, self.num_envs)
        if self._actions is not None and not mask.all():
            raise RuntimeError("a reset of single environments must not stand between send and recv")
        if seeds is not None:
            for row in np.flatnonzero(mask):
                self._streams[row] = np.random.default_rng(int(seeds[row]))
        self._actions = None
        self._over[mask] = False
        self._start(mask)
        self._push(mask)
        self._episode_start = self._episode_start | mask
        return self._observations(), {"episode_start": self._episode_start}

    def send(self, actions: Integer[np.ndarray, "N"]) -> None:
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
        dict[str, np.ndarray],
    ]:
        """Observations, rewards, terminated, truncated (always False) and an info with `episode_start`."""
        start = self._over
        rewards = np.where(start, np.float32(0), self._rewards[self._states, self._actions])
        self._over = ~start & self._ends[self._states]
        self._states = self._after[self._states]
        self._actions = None
        self._start(start)
        self._push(np.ones(self.num_envs, bool))
        self._episode_start = start
        truncated = np.zeros(self.num_envs, bool)
        return self._observations(), rewards, self._over.copy(), truncated, {"episode_start": start}

    def step(self, actions: Integer[np.ndarray, "N"]) -> Any:
        """`send` followed by `recv`."""
        self.send(actions)
        return self.recv()

    def scripted_actions(self, look: Bool[np.ndarray, "N"] | None = None) -> Integer[np.ndarray, "N"]:
        """The actions with the highest reward, which are optimal because actions affect rewards only."""
        del look  # actions do not change the states
        return self._rewards[self._states].argmax(1)

    @property
    def pure(self) -> JaxVectorEnv | None:
        """The same probe for a compiled loop; None with pixels."""
        return None if self._pixels else JaxVectorEnv(self.probe, self.num_envs, name=self.name)

    def evaluation(self, num_envs: int) -> ProbeVectorEnv:
        """`num_envs` copies of the same probe, because evaluations have the same rules as training."""
        return ProbeVectorEnv(self.probe, num_envs, pixels=self._pixels)

    def describe(self) -> str:
        """The kind of observation in one line."""
        return "probe: " + ("four 84 x 84 frames" if self._pixels else "one number")

    def facts(self) -> dict[str, Any]:
        """The kind of observation."""
        return {"name": "probe", "pixels": self._pixels, "evaluation_epsilon": self.evaluation_epsilon}

    def __repr__(self) -> str:
        return f"ProbeVectorEnv({self.name!r}, num_envs={self.num_envs})"

    def _start(self, mask: np.ndarray) -> None:
        """Draws a first state and empties the stack where `mask` is True."""
        for row in np.flatnonzero(mask):
            self._states[row] = self._streams[row].choice(self.probe.starts)
        if self._stacks is not None:
            self._stacks[mask] = 0

    def _push(self, mask: np.ndarray) -> None:
        """Pushes the frame of the current state onto the stacks where `mask` is True."""
        if self._stacks is not None:
            newest = self._frames[self._states[mask]][:, None]
            self._stacks[mask] = np.concatenate([self._stacks[mask][:, 1:], newest], axis=1)

    def _observations(self) -> np.ndarray:
        return self._features[self._states] if self._stacks is None else self._stacks.copy()


def make(game: str, num_envs: int, pixels: bool = False) -> ProbeVectorEnv:
    """`num_envs` copies of a probe.

    Args:
      game: a name of `PROBES`, such as "probe/policy".
      num_envs: environments stepped together.
      pixels: whether observations are uint8 [4, 84, 84] stacks of frames, as on Atari, instead of one float32.

    Raises:
      UserError: the probe is unknown, or `num_envs` is below 1.
    """
    if game not in PROBES:
        raise UserError(f"unknown game {game!r}{nearest(game, PROBES)}")
    return ProbeVectorEnv(PROBES[game], num_envs, pixels=pixels)
