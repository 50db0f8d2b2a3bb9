"""A run: a loop that is driven to its end, and its folder, checkpoints, metrics and display."""

from .checkpoint import Checkpoint
from .folder import RunFolder, read_config
from .metrics import Metrics
from .progress import Progress
from .resume import HOSTS, Start, start, together
from .run import run
from .saving import Checkpoints

__all__ = [
    "HOSTS",
    "Checkpoint",
    "Checkpoints",
    "Metrics",
    "Progress",
    "RunFolder",
    "Start",
    "read_config",
    "run",
    "start",
    "together",
]
