"""Operations on arrays and numbers; nothing here knows a head, a network or an agent."""

from .histogram.projection import Gaussian, TwoHot

__all__ = ["Gaussian", "TwoHot"]
