"""Training loops, one file for each. `loop.py` defines the interface of a loop.

`Online` learns from environments that run on this machine, and `Offline` from a source of recorded data. `Compiled`
trains many seeds at once, from environments that are pure functions or from a recording on the device. `Placement` says
on which devices.
"""

from .compiled import Compiled
from .exploration import LinearDecay
from .learner import Diverged, Learner
from .loop import Dataset, Dealing, Loop, Rows, Saved, Source, Tick, Where
from .offline import Offline
from .offline_program import OfflineProgram
from .online import Online
from .placement import Placement
from .program import Program

__all__ = [
    "Compiled",
    "Dataset",
    "Dealing",
    "Diverged",
    "Learner",
    "LinearDecay",
    "Loop",
    "Offline",
    "OfflineProgram",
    "Online",
    "Placement",
    "Program",
    "Rows",
    "Saved",
    "Source",
    "Tick",
    "Where",
]
