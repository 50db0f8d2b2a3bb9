"""Scores what an agent has learnt; `Evaluator` is the interface."""

from .episodes import EpisodeEvaluator, Evaluation, evaluate
from .evaluator import Evaluator, Periodic, Tick

__all__ = ["EpisodeEvaluator", "Evaluation", "Evaluator", "Periodic", "Tick", "evaluate"]
