"""Evaluations of agents. `Evaluator` is the interface."""

from .episodes import EpisodeEvaluator, Evaluation, evaluate
from .evaluator import Evaluator, Periodic, Tick
from .held_out import HeldOutEvaluator
from .lanes import EachLane

__all__ = [
    "EachLane",
    "EpisodeEvaluator",
    "Evaluation",
    "Evaluator",
    "HeldOutEvaluator",
    "Periodic",
    "Tick",
    "evaluate",
]
