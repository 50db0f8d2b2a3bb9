"""Five probe MDPs, each of which one kind of bug fails: tiny, with Q values known in closed form.

An agent that fails on `constant` cannot fit a value; on `observation`, cannot read its input; on `two_step`,
cannot discount or bootstrap; on `action`, cannot tell actions apart; on `policy`, cannot put it all together.

Source: Andy Jones, "Debugging reinforcement learning systems" (andyljones.com/posts/rl-debugging.html).
"""

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

_STACK, _SIDE = 4, 84  # as Atari


@dataclasses.dataclass(frozen=True)
class Probe:
    """An MDP of S states and A actions, in which the action decides the reward and never the successor.

    Attributes:
      name: what `make` calls it.
      features: the one number observed in each state, -1, 0 or 1.
      rewards: [S][A].
      successors: [S], the next state; None where the episode ends.
      starts: states in which an episode begins, equally likely.
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

    def q_values(self, gamma: float) -> Float[np.ndarray, "S A"]:
        """The optimal action values, exact.

        >>> PROBES["probe/two_step"].q_values(0.5).tolist()
        [[0.5], [1.0]]
        """
        return np.asarray(self.closed_form(gamma), np.float64)

    def observations(self, *, pixels: bool = False) -> Shaped[np.ndarray, "S *observation"]:
        """What an agent sees in each state: float32 [S, 1], or uint8 [S, 4, 84, 84] with its past."""
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
        """A state to begin in and its observation; pure, for `jax.jit` and `jax.vmap`."""
        state = jax.random.choice(key, jnp.asarray(self.starts, jnp.int32))
        return state, jnp.asarray(self.features, jnp.float32)[state, None]

    def step(
        self, state: Int[ArrayLike, ""], action: Int[ArrayLike, ""], key: Key[Array, ""]
    ) -> tuple[Int32[Array, ""], Float32[Array, "1"], Float32[Array, ""], Bool[Array, ""]]:
        """One step, without reset at the end; pure.

        Args:
          state: from `reset` or `step`.
          action: 0 <= action < num_actions.
          key: unused, since nothing is random but the start; here for the common interface.

        Returns:
          Next state, observation, reward, terminated. At its end an episode shows the last observation again.
        """
        del key
        reward = jnp.asarray(self.rewards, jnp.float32)[state, action]
        terminated = jnp.asarray([after is None for after in self.successors])[state]
        state = jnp.asarray(self._after(), jnp.int32)[state]
        return state, jnp.asarray(self.features, jnp.float32)[state, None], reward, terminated

    def _after(self) -> list[int]:
        return [state if after is None else after for state, after in enumerate(self.successors)]

    def _frame(self, state: int) -> np.ndarray:
        # Never black: black stands for "no frame" in a stack.
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


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The counterpart of `rlcls.envs.atari.Protocol`; only the kind of observation can be chosen."""

    name: str
    pixels: bool
    evaluation_epsilon: float = 0.0

    def evaluation(self) -> "Protocol":
        """Itself: a probe is scored as it is learnt."""
        return self

    def describe(self) -> str:
        """One line for a person."""
        return f"{self.name}: " + ("four 84 x 84 frames" if self.pixels else "one number")


class ProbeVectorEnv(gymnasium.vector.VectorEnv):
    """N copies of a probe behind the interface of `rlcls.envs.atari.Atari`.

    As there, the step after an episode's end ignores its action and has `info["episode_start"]` set, and the
    stack of the pixel variant holds zeros before the first frame of an episode.
    """

    def __init__(self, probe: Probe, num_envs: int, *, pixels: bool = False):
        if num_envs < 1:
            raise UserError(f"env.num_envs must be at least 1, not {num_envs}")
        self.probe = probe
        self.game = probe.name
        self.protocol = Protocol("probe", pixels)
        self.frame_skip = 1
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        if pixels:
            self.single_observation_space = gymnasium.spaces.Box(0, 255, (_STACK, _SIDE, _SIDE), np.uint8)
        else:
            self.single_observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(probe.num_actions)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self._rewards = np.asarray(probe.rewards, np.float32)
        self._ends = np.asarray([after is None for after in probe.successors])
        self._after = np.asarray(probe._after())
        self._frames = np.stack([probe._frame(state) for state in range(probe.num_states)])
        self._features = probe.observations()
        self._streams = [np.random.default_rng() for _ in range(num_envs)]
        self._states = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, bool)
        self._stacks = np.zeros((num_envs, _STACK, _SIDE, _SIDE), np.uint8) if pixels else None
        self._actions: np.ndarray | None = None

    def reset(
        self, *, seed: int | Integer[np.ndarray, "N"] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Shaped[np.ndarray, "N *observation"], dict[str, np.ndarray]]:
        """Begins an episode in every environment, with fresh streams where seeds are given, one each."""
        if seed is not None:
            if isinstance(seed, (int, np.integer)):
                seed = np.random.SeedSequence(int(seed)).generate_state(self.num_envs)
            self._streams = [np.random.default_rng(int(one)) for one in seed]
        self._actions = None
        self._over[:] = False
        start = np.ones(self.num_envs, bool)
        return self._begin(start), {"episode_start": start}

    def send(self, actions: Integer[np.ndarray, "N"]) -> None:
        """Keeps the actions for `recv`."""
        if self._actions is not None:
            raise RuntimeError("send was called twice without recv")
        self._actions = np.array(actions)

    def recv(
        self,
    ) -> tuple[
        Shaped[np.ndarray, "N *observation"],
        Float32[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        dict[str, np.ndarray],
    ]:
        """Observations, rewards, terminated, truncated (never) and an info with `episode_start`."""
        start = self._over
        rewards = np.where(start, np.float32(0), self._rewards[self._states, self._actions])
        self._over = ~start & self._ends[self._states]
        self._states = self._after[self._states]
        self._actions = None
        truncated = np.zeros(self.num_envs, bool)
        return self._begin(start), rewards, self._over.copy(), truncated, {"episode_start": start}

    def step(self, actions: Integer[np.ndarray, "N"]) -> Any:
        """`send` and `recv` at once."""
        self.send(actions)
        return self.recv()

    def _begin(self, start: np.ndarray) -> np.ndarray:
        """Draws the states of the episodes that begin, and gives all observations."""
        for row in np.flatnonzero(start):
            self._states[row] = self._streams[row].choice(self.probe.starts)
        if self._stacks is None:
            return self._features[self._states]
        self._stacks[start] = 0
        self._stacks = np.concatenate([self._stacks[:, 1:], self._frames[self._states][:, None]], axis=1)
        return self._stacks.copy()


def make(game: str, num_envs: int, pixels: bool = False) -> ProbeVectorEnv:
    """`num_envs` copies of the probe of that name.

    Args:
      game: a name of `PROBES`, such as "probe/policy".
      num_envs: environments stepped together.
      pixels: uint8 [4, 84, 84] frame stacks such as Atari's in place of one float32.

    Raises:
      UserError: no such probe, or no environment asked for.
    """
    if game not in PROBES:
        raise UserError(f"unknown game {game!r}{nearest(game, PROBES)}")
    return ProbeVectorEnv(PROBES[game], num_envs, pixels=pixels)
