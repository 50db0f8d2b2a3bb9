"""Value heads: the representation of a value, its targets and its loss. Needs jax, numpy and jaxtyping only.

    head = heads.HLGauss(heads.Support.uniform(-10, 10, 51, on="edges"), sigma_ratio=0.75)
    loss = head.loss(outputs, targets)      # [*b, 51], [*b] -> [*b]
    values = head.value(outputs)            # [*b, 51] -> [*b]

A head is a frozen, hashable dataclass without parameters, so it can be a static argument of a jit. The modules that
compute the outputs are in `heads.nnx`, `heads.linen` and `heads.haiku`; the first use of each imports its framework.
"""

import importlib
from typing import Any

from .base import Head, select
from .bce import BCE
from .categorical import C51, CategoricalHead, HLGauss, MSESoftmax, OneHot, TwoHot
from .factory import BY_NAME, make
from .functional import (
    categorical_l2_project,
    from_probs,
    hl_gauss_cross_entropy,
    hl_gauss_probs,
    one_hot,
    two_hot,
    two_hot_cross_entropy,
)
from .padding import pad_outputs
from .portable import portable_encode
from .quality import crps, edge_mass, explained_variance, marginal_cross_entropy
from .quantile import Quantile, quantile_huber
from .returns import recap, recap_returns
from .scalar import MSE, Huber
from .suggest import reward_scale, suggest_support, support_from_rewards
from .support import Support

__all__ = [
    "BCE",
    "BY_NAME",
    "C51",
    "MSE",
    "CategoricalHead",
    "HLGauss",
    "Head",
    "Huber",
    "MSESoftmax",
    "OneHot",
    "Quantile",
    "Support",
    "TwoHot",
    "categorical_l2_project",
    "crps",
    "edge_mass",
    "explained_variance",
    "from_probs",
    "hl_gauss_cross_entropy",
    "hl_gauss_probs",
    "make",
    "marginal_cross_entropy",
    "one_hot",
    "pad_outputs",
    "portable_encode",
    "quantile_huber",
    "recap",
    "recap_returns",
    "reward_scale",
    "select",
    "suggest_support",
    "support_from_rewards",
    "two_hot",
    "two_hot_cross_entropy",
]


def __getattr__(name: str) -> Any:
    if name in ("haiku", "linen", "nnx"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
