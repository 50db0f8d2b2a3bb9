"""Online experience: single frames stored once, n-step transitions made when sampled; on the host or in a program."""

from .arrays import ArrayReplay
from .frames import FrameReplay, Sampled
from .priorities import Priorities

__all__ = ["ArrayReplay", "FrameReplay", "Priorities", "Sampled"]
