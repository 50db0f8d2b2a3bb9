"""Training loops, one file for each. `loop.py` defines the interface of a loop.

`Online` learns from environments that run on this machine, `Offline` from a source of recorded data.
"""

from .exploration import LinearDecay
from .learner import Diverged, Learner
from .loop import Dataset, Loop, Rows, Saved, Source, Tick, Where
from .offline import Offline
from .online import Online

__all__ = [
    "Dataset",
    "Diverged",
    "Learner",
    "LinearDecay",
    "Loop",
    "Offline",
    "Online",
    "Rows",
    "Saved",
    "Source",
    "Tick",
    "Where",
]
