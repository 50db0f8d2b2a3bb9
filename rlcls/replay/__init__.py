"""Online experience: single frames stored once, n-step transitions made when sampled."""

from .frames import FrameReplay, Sampled
from .priorities import Priorities

__all__ = ["FrameReplay", "Priorities", "Sampled"]
