"""Pictures of runs, and what they read of run folders."""

from .curves import compare, learning_curve
from .runs import AXES, Run, groups, load, load_each, without_copies

__all__ = ["AXES", "Run", "compare", "groups", "learning_curve", "load", "load_each", "without_copies"]
