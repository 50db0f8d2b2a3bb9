"""The Arcade Learning Environment as a vector environment, under named evaluation protocols."""

import dataclasses
import difflib
import functools
import os
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.vector
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float32, Integer, UInt8

from rlcls._errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What an agent is asked to play: every choice that changes the emulation, none left to a default.

    The fields below `evaluation_frames` are the keyword arguments of `ale_py.vector_env.AtariVectorEnv`,
    under the emulator's names. Every protocol presents four 84 x 84 grey frames, each the maximum of the
    last two of four emulated frames, and gives raw rewards: clipping is the agent's.
    """

    name: str
    evaluation_epsilon: float
    evaluation_frames: int  # of an evaluation episode, emulator frames
    max_num_frames_per_episode: int  # of a training episode, emulator frames: a truncation
    repeat_action_probability: float  # of each emulator frame
    noop_max: int  # up to noop_max - 1 no-ops (one fewer after FIRE) before the first observation; 0: none
    use_fire_reset: bool  # press FIRE once before the no-ops, where the game has it
    life_loss_info: bool  # a lost life is `terminated`, and the game goes on
    full_action_space: bool
    frameskip: int = 4
    maxpool: bool = True
    img_height: int = 84
    img_width: int = 84
    grayscale: bool = True
    stack_num: int = 4
    reward_clipping: bool = False
    # Not what its name suggests: it starts a new game at every lost life. `life_loss_info` is meant.
    episodic_life: bool = False
    continuous: bool = False
    continuous_action_threshold: float = 0.5

    def evaluation(self) -> "Protocol":
        """The same game for scoring an agent: whole games, never ended by a lost life."""
        return dataclasses.replace(
            self, life_loss_info=False, max_num_frames_per_episode=self.evaluation_frames
        )

    def describe(self) -> str:
        """One line for a person.

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
        """The keyword arguments of `AtariVectorEnv` that this protocol decides."""
        arguments = dataclasses.asdict(self)
        for own in ("name", "evaluation_epsilon", "evaluation_frames"):
            del arguments[own]
        return arguments


_PROTOCOLS = (
    # Machado et al. 2018 (arXiv 1709.06009), as Dopamine runs it: dopamine/jax/agents/dqn/configs/dqn.gin
    # and AtariPreprocessing.
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
    # Mnih et al. 2015, Methods: no-op starts, epsilon 0.05 and five minutes for an evaluation game. The paper
    # neither presses FIRE nor limits a training game; the common reproductions do (FireResetEnv of OpenAI
    # Baselines; half an hour, as in DQN Zoo). They press FIRE after the no-ops, the emulator before them.
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
    # The 100k benchmark of Kaiser et al. 2020 (arXiv 1903.00374) as later work settled it: Schwarzer et al.
    # 2021 (arXiv 2007.05929, no FIRE at the start) and SPR.gin of dopamine/labs/atari_100k.
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
    """N games stepped in C++ threads, rows always in the order of the environments.

    `send` returns at once and the threads step while the caller does other work; `recv` waits for all of
    them. After a game over, or at the frame limit, the next step ignores its action, resets that game and
    has `info["episode_start"]` set; its reward is 0. A life lost under `life_loss_info` is `terminated` but
    is *not* followed by such a step: mark the rows that hold no transition by `episode_start`, never by
    `terminated`.

    Frame stacks: at every reset (after the protocol's FIRE and no-ops) the stack is emptied to zeros and
    the first frame pushed, so an episode begins with [0, 0, 0, frame] whatever the protocol. An observation
    is therefore the last four single frames `observation[:, -1]` of its episode, oldest first, with zeros
    before `episode_start`; a lost life leaves the stack alone.

    Attributes:
      game: name of the game, in CamelCase.
      protocol: what is played.
      frame_skip: emulator frames of an agent step.
    """

    def __init__(self, game: str, num_envs: int, protocol: Protocol, num_threads: int = 0):
        if num_envs < 1:
            raise UserError(f"env.num_envs must be at least 1, not {num_envs}")
        if num_threads < 0:
            raise UserError(f"env.num_threads must be 0 (all cores but one) or more, not {num_threads}")
        rom = _rom(game)
        self._emulator = _ale().AtariVectorEnv(
            rom,
            num_envs,
            # All environments in every batch: with fewer, rows come in order of readiness.
            batch_size=num_envs,
            num_threads=num_threads or max(1, _cores() - 1),
            thread_affinity_offset=-1,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            **protocol.emulator_arguments(),
        )
        self.game = game
        self.protocol = protocol
        self.frame_skip = protocol.frameskip
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = self._emulator.single_observation_space
        self.single_action_space = self._emulator.single_action_space
        self.observation_space = self._emulator.observation_space
        self.action_space = self._emulator.action_space
        self._in_flight = False
        self._episode_began = np.zeros(num_envs, np.int64)

    def reset(
        self,
        *,
        seed: int | Integer[np.ndarray, "N"] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[UInt8[np.ndarray, "N *frames"], dict[str, np.ndarray]]:
        """Starts a new game in every environment, abandoning whatever was played.

        Args:
          seed: one per environment, of which the low 31 bits count: afterwards every environment is bit for
            bit a fresh one with that seed. An int is spread with `numpy.random.SeedSequence`; with None the
            streams go on.
          options: not supported.

        Returns:
          The first observations, and an info like that of `recv`.
        """
        if options:
            raise UserError(f"the Atari environment takes no reset options, not {sorted(options)}")
        if self._in_flight:
            self.recv()
        if seed is not None:
            if isinstance(seed, (int, np.integer)):
                seed = np.random.SeedSequence(int(seed)).generate_state(self.num_envs)
            # The emulator reads a C int, and takes a negative one for "no seed".
            seed = (np.asarray(seed).astype(np.int64) & 0x7FFFFFFF).astype(np.int32)
        observations, info = self._emulator.reset(seed=seed)
        self._episode_began = _episode_began(info)
        info["episode_start"] = np.ones(self.num_envs, bool)
        return observations, info

    def send(self, actions: Integer[np.ndarray, "N"]) -> None:
        """Lets the threads play one agent step and returns at once; `recv` must follow."""
        if self._in_flight:
            raise RuntimeError("send was called twice without recv")
        self._emulator.send(np.asarray(actions, np.int32))
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
        """Waits for the step that `send` began.

        Returns:
          Observations (frames oldest first), raw rewards, terminated, truncated, and an info of arrays [N]:
          `episode_start` (see the class), `lives`, `frame_number`, `episode_frame_number`, `env_id`.
        """
        self._in_flight = False
        observations, rewards, terminated, truncated, info = self._emulator.recv()
        # The frame at which this game began changes at a reset and at nothing else.
        began = _episode_began(info)
        info["episode_start"] = began != self._episode_began
        self._episode_began = began
        return observations, rewards.astype(np.float32), terminated, truncated, info

    def step(self, actions: Integer[np.ndarray, "N"]) -> Any:
        """`send` and `recv` at once."""
        self.send(actions)
        return self.recv()

    def close_extras(self, **kwargs: Any) -> None:
        """Joins the threads."""
        self._emulator = None


def make(game: str, num_envs: int, protocol: str = "dopamine", num_threads: int = 0) -> Atari:
    """`num_envs` copies of a game under a named protocol.

    Args:
      game: a name of `games()`, such as "MsPacman".
      num_envs: environments stepped together.
      protocol: a name of `PROTOCOLS`.
      num_threads: C++ threads, never more than cores or environments; 0 leaves one core to the learner.

    Raises:
      UserError: an unknown game or protocol, a size that cannot be, or no ale-py.
    """
    return Atari(game, num_envs, protocol_named(protocol), num_threads)


def rgb_twin(game: str, protocol: Protocol, num_envs: int = 1) -> Atari:
    """The same game in colour at the console's own size, to film what an agent of `make` plays.

    Reset with the same seeds and sent the same actions it plays the same episodes, while its observations
    are uint8 [N, 1, height, width, 3], mostly 210 x 160.
    """
    ale = _ale()
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    console = ale.ALEInterface()
    console.loadROM(ale.roms.get_rom_path(_rom(game)))
    height, width = console.getScreenDims()
    coloured = dataclasses.replace(protocol, grayscale=False, stack_num=1, img_height=height, img_width=width)
    return Atari(game, num_envs, coloured)


def games() -> list[str]:
    """Names of the games whose ROMs ship with ale-py, in alphabetical order."""
    return sorted(_roms())


def protocol_named(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
      UserError: there is none.
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
    if game not in roms:
        # All 108 names would hide the one that was meant.
        like = difflib.get_close_matches(game.title(), roms, n=4, cutoff=0.4)
        raise UserError(f"unknown game {game!r}{nearest(game, like)}; rlcls.envs.atari.games() lists all")
    return roms[game]


@functools.cache
def _roms() -> dict[str, str]:
    """ROM names by game name: {"MsPacman": "ms_pacman", ...}."""
    ale = _ale()
    from ale_py.registration import rom_id_to_name
    from ale_py.roms import get_all_rom_ids

    folder = Path(ale.roms.__file__).parent
    return {rom_id_to_name(rom): rom for rom in get_all_rom_ids() if (folder / f"{rom}.bin").exists()}


def _ale():
    try:
        import ale_py
        import ale_py.roms
        import ale_py.vector_env
    except ImportError as error:
        raise UserError(f'Atari needs ale-py: pip install "rlcls[atari]" ({error})') from None
    return ale_py
