"""Plots of runs, and the reading of run folders for them."""

from .aggregates import aggregates
from .curves import compare, learning_curve
from .runs import AXES, Run, groups, load, load_each, without_copies
from .scores import of_games, score, together

__all__ = [
    "AXES",
    "Run",
    "aggregates",
    "compare",
    "groups",
    "learning_curve",
    "load",
    "load_each",
    "of_games",
    "score",
    "together",
    "without_copies",
]
