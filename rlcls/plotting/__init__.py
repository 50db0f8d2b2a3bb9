"""Pictures of runs."""

from .curves import compare, learning_curve

__all__ = ["compare", "learning_curve"]
