"""Heads by name, for configurations."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rlcls._errors import nearest

from .base import Head
from .bce import BCE
from .categorical import C51, HLGauss, MSESoftmax, OneHot, TwoHot
from .quantile import Quantile
from .scalar import MSE, Huber
from .support import On, Support

_PLAIN: dict[str, type[Head]] = {"bce": BCE, "huber": Huber, "mse": MSE, "quantile": Quantile}
# For each head on bins: its class, and the default of its option `on`.
_CATEGORICAL: dict[str, tuple[type[Any], On]] = {
    "c51": (C51, "centers"),
    "hlgauss": (HLGauss, "edges"),
    "mse_softmax": (MSESoftmax, "centers"),
    "one_hot": (OneHot, "edges"),
    "two_hot": (TwoHot, "centers"),
}
# The names that `make` knows, and their classes.
BY_NAME: Mapping[str, type[Head]] = MappingProxyType(
    dict(sorted((_PLAIN | {name: kind for name, (kind, _) in _CATEGORICAL.items()}).items()))
)


def make(name: str, **options: Any) -> Head:
    """The head called `name`.

    Args:
      name: mse, huber, bce, quantile, mse_softmax, one_hot, two_hot, hlgauss or c51.
      **options: the fields of the head's class, and those of its `Support` if it has one: vmin, vmax and num_bins, or
        points. The default of `on` is "edges" for hlgauss and one_hot, and "centers" for the others.

    Raises:
      ValueError: the name is unknown, or an option has an impossible value.
      TypeError: the head does not take an option, or a required option is missing.

    >>> make("hlgauss", vmin=-10, vmax=10, num_bins=51).num_outputs
    51
    """
    if name in _CATEGORICAL:
        kind, on = _CATEGORICAL[name]
        own_fields, support_fields = _fields(kind) - {"support"}, _fields(Support)
        _check_known(name, options, own_fields | support_fields)
        own = {option: x for option, x in options.items() if option in own_fields}
        support = {"on": on} | {option: x for option, x in options.items() if option in support_fields}
        return kind(_support(name, support), **own)
    if name in _PLAIN:
        _check_known(name, options, _fields(_PLAIN[name]))
        return _PLAIN[name](**options)
    raise ValueError(f"unknown loss {name!r}{nearest(name, BY_NAME)}")


def _support(name: str, options: dict[str, Any]) -> Support:
    if options.get("points") is not None:
        for option in ("vmin", "vmax", "num_bins", "bin_transform"):
            if option in options:
                raise TypeError(f"loss {name!r} takes points or {option}, not both")
        return Support.arbitrary(**options)
    missing = [option for option in ("vmin", "vmax", "num_bins") if option not in options]
    if missing:
        raise TypeError(f"loss {name!r} needs {', '.join(missing)}")
    return Support(**options)


def _fields(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _check_known(name: str, options: dict[str, Any], known: set[str]) -> None:
    for option in options:
        if option not in known:
            raise TypeError(f"loss {name!r} takes no option {option!r}{nearest(option, known)}")
