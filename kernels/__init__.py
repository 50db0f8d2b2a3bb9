"""Operations on arrays and numbers; nothing here knows a head, a network or an agent."""

from .histogram.api import histogram_cross_entropy
from .histogram.irregular import IrregularGaussian, IrregularOneHot, IrregularTwoHot, LocalGaussian
from .histogram.projection import Gaussian, OneHot, TwoHot

__all__ = [
    "Gaussian",
    "IrregularGaussian",
    "IrregularOneHot",
    "IrregularTwoHot",
    "LocalGaussian",
    "OneHot",
    "TwoHot",
    "histogram_cross_entropy",
]
