"""A run: one loop driven to its end, its folder, checkpoints, metrics and display."""

from .checkpoint import Checkpoint, Checkpoints
from .folder import RunFolder, read_config
from .metrics import Metrics
from .progress import Progress
from .resume import Start, start
from .run import run

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Metrics",
    "Progress",
    "RunFolder",
    "Start",
    "read_config",
    "run",
    "start",
]
