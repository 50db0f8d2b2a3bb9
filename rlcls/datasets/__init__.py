"""Recorded experience: DQN Replay, RL Unplugged, Minari and own recordings, with one sampler for all."""

from .arrays import ArrayTransitions
from .choices import open_dqn_replay, open_minari, open_recording, open_rl_unplugged
from .mixture import Mixture
from .recording import Recording, Writer
from .rows import BEGINS, CONTINUES, CUT, TRUNCATED, Layout, Rows
from .streams import Streams
from .transitions import Transitions

__all__ = [
    "BEGINS",
    "CONTINUES",
    "CUT",
    "TRUNCATED",
    "ArrayTransitions",
    "Layout",
    "Mixture",
    "Recording",
    "Rows",
    "Streams",
    "Transitions",
    "Writer",
    "open_dqn_replay",
    "open_minari",
    "open_recording",
    "open_rl_unplugged",
]
