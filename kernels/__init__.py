"""Fused losses and projections on arrays. This package imports no head, network or agent."""

from .categorical_projection.api import categorical_projection_cross_entropy
from .histogram.api import histogram_cross_entropy
from .histogram.dispatch import IMPLEMENTATIONS
from .histogram.irregular import IrregularGaussian, IrregularOneHot, IrregularTwoHot, LocalGaussian
from .histogram.projection import Gaussian, OneHot, TwoHot
from .linear_histogram.api import linear_histogram_cross_entropy

__all__ = [
    "IMPLEMENTATIONS",
    "Gaussian",
    "IrregularGaussian",
    "IrregularOneHot",
    "IrregularTwoHot",
    "LocalGaussian",
    "OneHot",
    "TwoHot",
    "categorical_projection_cross_entropy",
    "histogram_cross_entropy",
    "linear_histogram_cross_entropy",
]
