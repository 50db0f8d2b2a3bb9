"""The Arcade Learning Environment as a vector environment, under named evaluation protocols."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.vector
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float32, Integer, UInt8

from rlcls._errors import UserError, install, nearest
from rlcls.spec import Spec

from .base import checked_actions, reset_arguments
from .spaces import spec_from_spaces


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """All options of the emulation, so that nothing depends on the emulator's defaults.

    The fields below `evaluation_frames` are the keyword arguments of `ale_py.vector_env.AtariVectorEnv`, under the
    emulator's names. Observations are four 84 x 84 grey frames, each the maximum of the last two of four emulated
    frames. Rewards are raw; the replay clips them.
    """

    name: str
    evaluation_epsilon: float  # the probability of a random action in evaluations
    evaluation_frames: int  # emulator frames after which an evaluation episode is truncated
    max_num_frames_per_episode: int  # emulator frames after which a training episode is truncated
    repeat_action_probability: float  # the probability that an emulator frame repeats the previous action
    noop_max: int  # a reset plays at most noop_max - 1 no-ops (one fewer after FIRE); 0: none
    use_fire_reset: bool  # a reset presses FIRE before the no-ops, in games that have it
    life_loss_info: bool  # a lost life sets `terminated`, and the game continues
    full_action_space: bool
    frameskip: int = 4
    maxpool: bool = True
    img_height: int = 84
    img_width: int = 84
    grayscale: bool = True
    stack_num: int = 4
    reward_clipping: bool = False
    # The emulator's `episodic_life` starts a new game at every lost life; the usual episodic life is `life_loss_info`.
    episodic_life: bool = False
    continuous: bool = False
    continuous_action_threshold: float = 0.5

    def evaluation(self) -> Protocol:
        """The protocol of evaluations: a lost life does not end the episode, and `evaluation_frames` is the limit."""
        return dataclasses.replace(
            self, life_loss_info=False, max_num_frames_per_episode=self.evaluation_frames
        )

    def describe(self) -> str:
        """A readable summary of the protocol in one line.

        >>> PROTOCOLS["dopamine"].describe()
        'dopamine: sticky actions 0.25, frame skip 4, no no-op starts, ends at game over or 108000 frames'
        """
        sticky = self.repeat_action_probability
        parts = [
            f"sticky actions {sticky:g}" if sticky else "no sticky actions",
            f"frame skip {self.frameskip}",
            f"no-op starts below {self.noop_max}" if self.noop_max else "no no-op starts",
            "FIRE at the start" if self.use_fire_reset else "",
            "all 18 actions" if self.full_action_space else "",
            "a lost life is terminal" if self.life_loss_info else "",
            f"ends at game over or {self.max_num_frames_per_episode} frames",
        ]
        return f"{self.name}: {', '.join(part for part in parts if part)}"

    def emulator_arguments(self) -> dict[str, Any]:
        """The protocol as keyword arguments of `AtariVectorEnv`."""
        arguments = dataclasses.asdict(self)
        for own in ("name", "evaluation_epsilon", "evaluation_frames"):
            del arguments[own]
        return arguments


# The emulator rejects these ROMs, which have no mode for one player.
_FOR_TWO_PLAYERS = ("Combat", "Joust", "MazeCraze", "Warlords")

_PROTOCOLS = (
    # Machado et al. 2018 (arXiv 1709.06009), with the values of Dopamine: dopamine/jax/agents/dqn/configs/dqn.gin and
    # AtariPreprocessing.
    Protocol(
        name="dopamine",
        evaluation_epsilon=0.001,
        evaluation_frames=108_000,
        max_num_frames_per_episode=108_000,
        repeat_action_probability=0.25,
        noop_max=0,
        use_fire_reset=False,
        life_loss_info=False,
        full_action_space=False,
    ),
    # Mnih et al. 2015, Methods: no-op starts, epsilon 0.05 and five minutes for an evaluation game. The paper does not
    # press FIRE and does not limit a training game. Common reproductions do both (FireResetEnv of OpenAI Baselines;
    # half an hour in DQN Zoo). They press FIRE after the no-ops, whereas the emulator presses it before them.
    Protocol(
        name="nature",
        evaluation_epsilon=0.05,
        evaluation_frames=18_000,
        max_num_frames_per_episode=108_000,
        repeat_action_probability=0.0,
        noop_max=30,
        use_fire_reset=True,
        life_loss_info=True,
        full_action_space=False,
    ),
    # The 100k benchmark of Kaiser et al. 2020 (arXiv 1903.00374) with the rules of later work: Schwarzer et al. 2021
    # (arXiv 2007.05929, no FIRE at the start) and SPR.gin of dopamine/labs/atari_100k.
    Protocol(
        name="atari100k",
        evaluation_epsilon=0.001,
        evaluation_frames=108_000,
        max_num_frames_per_episode=108_000,
        repeat_action_probability=0.0,
        noop_max=30,
        use_fire_reset=False,
        life_loss_info=True,
        full_action_space=False,
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _PROTOCOLS}


class Atari(gymnasium.vector.VectorEnv):
    """N games that C++ threads step: a `HostEnv`. Rows are always in the order of the environments.

    `send` returns at once, and the threads step while the caller does other work. `recv` waits for all of them. With
    `life_loss_info` a lost life is `terminated`, but no reset follows. Only `info["episode_start"]` therefore marks
    rows that hold no transition.

    Frame stacks: every reset fills the stack with zeros and pushes the first frame after the protocol's FIRE and
    no-ops, so an episode begins with [0, 0, 0, frame] under every protocol. An observation is the last four single
    frames `observation[:, -1]` of its episode, oldest first, with zeros before `episode_start`. A lost life does not
    change the stack.

    Attributes:
      game: name of the game, in CamelCase.
      protocol: the rules of the game.
    """

    evaluation_epsilon: float
    spec: Spec  # type: ignore[assignment]  # gymnasium's is the entry of its registry

    def __init__(self, game: str, num_envs: int, protocol: Protocol, num_threads: int = 0):
        if num_envs < 1:
            raise UserError(f"env.num_envs must be at least 1, not {num_envs}")
        if num_threads < 0:
            raise UserError(f"env.num_threads must be 0 (all cores but one) or more, not {num_threads}")
        rom = _rom(game)
        self._num_threads = num_threads
        self._emulator = _ale().AtariVectorEnv(
            rom,
            num_envs,
            # A batch smaller than num_envs would hold the environments that finish first.
            batch_size=num_envs,
            num_threads=num_threads or max(1, _cores() - 1),
            thread_affinity_offset=-1,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            **protocol.emulator_arguments(),
        )
        self.game = self.name = game
        self.protocol = protocol
        self.num_envs = num_envs
        self.frame_skip, self.frame_stack = protocol.frameskip, protocol.stack_num
        self.fps = 60 / self.frame_skip  # agent steps in a second of the console
        self.evaluation_epsilon = protocol.evaluation_epsilon
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = self._emulator.single_observation_space
        self.single_action_space = self._emulator.single_action_space
        self.observation_space = self._emulator.observation_space
        self.action_space = self._emulator.action_space
        self.spec = spec_from_spaces(self.single_observation_space, self.single_action_space)
        self._in_flight = False
        self._episode_began = np.zeros(num_envs, np.int64)
        self._episode_start = np.zeros(num_envs, bool)

    def reset(
        self,
        *,
        seed: int | Integer[np.ndarray, "N"] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[UInt8[np.ndarray, "N *frames"], dict[str, np.ndarray]]:
        """Starts a new game in every environment, or in those that a mask selects, and drops their current games.

        Args:
          seed: one per environment, of which the low 31 bits are used. An environment that was reset behaves exactly
            like a new one with that seed. An int is passed through `environment_seeds`. With None the random streams
            continue.
          options: {"reset_mask": bool [N]} resets only those environments; all must have been reset before.

        Returns:
          The observations of all environments, and an info like that of `recv`.

        Raises:
          ValueError: the arguments do not fit the environments.
          RuntimeError: a mask is given between `send` and `recv`.
        """
        seeds, mask = reset_arguments(seed, options, self.num_envs)
        if self._in_flight:
            if not mask.all():
                raise RuntimeError("a reset of single environments must not stand between send and recv")
            self.recv()
        if seeds is not None:
            # The emulator reads seeds as C ints, and a negative seed means "no seed".
            seeds = (seeds.astype(np.int64) & 0x7FFFFFFF).astype(np.int32)[mask]
        observations, info = self._emulator.reset(seed=seeds, options={"reset_mask": mask})
        self._episode_began = _episode_began(info)
        self._episode_start = self._episode_start | mask
        info["episode_start"] = self._episode_start
        return observations, info

    def send(self, actions: Integer[np.ndarray, "N"]) -> None:
        """Starts one agent step in the threads and returns at once; `recv` must follow.

        Raises:
          UserError: an action does not exist in the game. The emulator would hang.
        """
        if self._in_flight:
            raise RuntimeError("send was called twice without recv")
        self._emulator.send(checked_actions(actions, self.spec, self.num_envs, self.name))
        self._in_flight = True

    def recv(
        self,
    ) -> tuple[
        UInt8[np.ndarray, "N *frames"],
        Float32[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        dict[str, np.ndarray],
    ]:
        """Waits for the step that `send` started.

        Returns:
          Observations (frames oldest first), raw rewards, terminated, truncated, and an info of arrays [N]:
          `episode_start` (see the class), `lives`, `frame_number`, `episode_frame_number`, `env_id`.
        """
        self._in_flight = False
        observations, rewards, terminated, truncated, info = self._emulator.recv()
        # This difference of frame counters changes only at a reset.
        began = _episode_began(info)
        info["episode_start"] = self._episode_start = began != self._episode_began
        self._episode_began = began
        return observations, rewards.astype(np.float32), terminated, truncated, info

    def step(self, actions: Integer[np.ndarray, "N"]) -> Any:
        """`send` followed by `recv`."""
        self.send(actions)
        return self.recv()

    def evaluation(self, num_envs: int) -> Atari:
        """The same game under `protocol.evaluation()`, on all cores unless `num_threads` was given."""
        threads = self._num_threads or num_envs  # the learner is idle during an evaluation
        return Atari(self.game, num_envs, self.protocol.evaluation(), threads)

    def render_twin(self) -> Atari:
        """One environment that plays the same episodes in colour; see `rgb_twin`."""
        return rgb_twin(self.game, self.protocol)

    def describe(self) -> str:
        """The protocol in one line."""
        return self.protocol.describe()

    def facts(self) -> dict[str, Any]:
        """The protocol's fields."""
        return dataclasses.asdict(self.protocol)

    def close_extras(self, **kwargs: Any) -> None:
        """Stops the threads."""
        self._emulator = None

    def __repr__(self) -> str:
        return f"Atari({self.game!r}, num_envs={self.num_envs}, protocol={self.protocol.name!r})"


def make(
    game: str,
    num_envs: int,
    protocol: str = "dopamine",
    num_threads: int = 0,
    full_action_space: bool = False,
) -> Atari:
    """`num_envs` copies of a game under a named protocol.

    Args:
      game: a name of `games()`, such as "MsPacman".
      num_envs: environments stepped together.
      protocol: a name of `PROTOCOLS`.
      num_threads: C++ threads, limited to the number of cores and environments; 0 leaves one core to the learner.
      full_action_space: whether the actions are all 18 of the console instead of those with an effect in the game. All
        games then have the same actions.

    Raises:
      UserError: the game or protocol is unknown, a number is out of range, or ale-py is not installed.
    """
    rules = protocol_named(protocol)
    if full_action_space:
        rules = dataclasses.replace(rules, full_action_space=True)
    return Atari(game, num_envs, rules, num_threads)


def rgb_twin(game: str, protocol: Protocol, num_envs: int = 1) -> Atari:
    """The same game in colour at the console's own size, for filming.

    With the same seeds and actions it plays the same episodes as the environment of `make`. Its observations are
    uint8 [N, 1, height, width, 3], 210 x 160 in most games.
    """
    ale = _ale()
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    console = ale.ALEInterface()
    console.loadROM(ale.roms.get_rom_path(_rom(game)))
    height, width = console.getScreenDims()
    coloured = dataclasses.replace(protocol, grayscale=False, stack_num=1, img_height=height, img_width=width)
    return Atari(game, num_envs, coloured)


def games() -> list[str]:
    """The names of the games for one player whose ROMs ship with ale-py, in alphabetical order."""
    return sorted(_roms())


def protocol_named(name: str) -> Protocol:
    """The protocol with this name.

    Raises:
      UserError: no protocol has this name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _episode_began(info: dict[str, np.ndarray]) -> np.ndarray:
    return info["frame_number"].astype(np.int64) - info["episode_frame_number"]


def _rom(game: str) -> str:
    roms = _roms()
    if game in _FOR_TWO_PLAYERS:
        raise UserError(f"game {game!r} needs two players; python -m rlcls.games lists the games for one")
    if game not in roms:
        similar = nearest(_plain_name(game), roms, most=4)
        raise UserError(f"unknown game {game!r}{similar}; python -m rlcls.games lists all")
    return roms[game]


def _plain_name(game: str) -> str:
    """The game in a name of gymnasium's registry, such as ALE/Pong-v5 or PongNoFrameskip-v4; else the name."""
    return re.sub(r"^ALE/|(-ram)?(NoFrameskip|Deterministic)?-v\d+$", "", game)


@functools.cache
def _roms() -> dict[str, str]:
    """Maps game names to ROM names: {"MsPacman": "ms_pacman", ...}."""
    ale = _ale()
    from ale_py.registration import rom_id_to_name
    from ale_py.roms import get_all_rom_ids

    folder = Path(ale.roms.__file__).parent
    names = {rom_id_to_name(rom): rom for rom in get_all_rom_ids() if (folder / f"{rom}.bin").exists()}
    return {name: rom for name, rom in names.items() if name not in _FOR_TWO_PLAYERS}


def _ale() -> Any:
    try:
        import ale_py
        import ale_py.roms
        import ale_py.vector_env
    except ImportError as error:
        raise UserError(f"Atari needs ale-py: {install('atari')} ({error})") from None
    return ale_py
