"""What learns: one file for each loop. `loop.py` says what a loop is.

`Online` learns from environments that run on this machine.
"""

from .exploration import LinearDecay
from .learner import Diverged, Learner
from .loop import Loop, Rows, Saved, Source, Where
from .online import Online

__all__ = ["Diverged", "Learner", "LinearDecay", "Loop", "Online", "Rows", "Saved", "Source", "Where"]
