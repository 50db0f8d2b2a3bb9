"""Value heads: how a value is represented, targeted and lost. Needs jax, numpy and jaxtyping only.

    head = heads.HLGauss(heads.Support.uniform(-10, 10, 51, on="edges"), sigma_ratio=0.75)
    loss = head.loss(outputs, targets)      # [*b, 51], [*b] -> [*b]
    values = head.value(outputs)            # [*b, 51] -> [*b]

A head is a frozen, hashable dataclass: it may be a static argument of a jit, and it holds no parameters.
`heads.nnx`, `heads.linen` and `heads.haiku` have the modules that make the outputs; each is loaded, with its
framework, when it is first used.
"""

import importlib
from typing import Any

from .base import CategoricalHead, Head, select
from .categorical import C51, HLGauss, TwoHot
from .factory import make
from .scalar import MSE, Huber
from .support import Support

__all__ = [
    "C51",
    "MSE",
    "CategoricalHead",
    "HLGauss",
    "Head",
    "Huber",
    "Support",
    "TwoHot",
    "make",
    "select",
]


def __getattr__(name: str) -> Any:
    if name in ("haiku", "linen", "nnx"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
