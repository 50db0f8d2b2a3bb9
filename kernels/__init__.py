"""Operations on arrays and numbers; nothing here knows a head, a network or an agent."""

from .categorical_projection.api import categorical_projection_cross_entropy
from .histogram.api import histogram_cross_entropy
from .histogram.irregular import IrregularGaussian, IrregularOneHot, IrregularTwoHot, LocalGaussian
from .histogram.projection import Gaussian, OneHot, TwoHot
from .linear_histogram.api import linear_histogram_cross_entropy

__all__ = [
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
