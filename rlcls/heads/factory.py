"""Heads by name, for configurations."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from .base import Head
from .categorical import C51, HLGauss, TwoHot
from .scalar import MSE, Huber
from .support import On, Support


def make(name: str, **options: Any) -> Head:
    """The head called `name`.

    Args: name: mse, huber, two_hot, hlgauss or c51. **options: delta (huber); vmin, vmax, num_bins and on
      (two_hot, hlgauss, c51; `on` is "edges" for hlgauss and
        "centers" for the others unless given); sigma_ratio (hlgauss).

    Raises:
      ValueError: there is no such head, or an option has an impossible value.
      TypeError: the head does not take an option, or misses one.

    >>> make("hlgauss", vmin=-10, vmax=10, num_bins=51).num_outputs
    51
    """
    if name not in _MAKERS:
        raise ValueError(f"unknown loss {name!r}{_nearest(name, _MAKERS)}")
    maker = _MAKERS[name]
    parameters = inspect.signature(maker).parameters
    for option in options:
        if option not in parameters:
            raise TypeError(f"loss {name!r} takes no option {option!r}{_nearest(option, parameters)}")
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise TypeError(f"loss {name!r} needs {', '.join(missing)}")
    return maker(**options)


def _two_hot(vmin: float, vmax: float, num_bins: int, on: On = "centers") -> TwoHot:
    return TwoHot(Support.uniform(vmin, vmax, num_bins, on=on))


def _hlgauss(vmin: float, vmax: float, num_bins: int, on: On = "edges", sigma_ratio: float = 0.75) -> HLGauss:
    return HLGauss(Support.uniform(vmin, vmax, num_bins, on=on), sigma_ratio)


def _c51(vmin: float, vmax: float, num_bins: int, on: On = "centers") -> C51:
    return C51(Support.uniform(vmin, vmax, num_bins, on=on))


_MAKERS: dict[str, Callable[..., Head]] = {
    "c51": _c51,
    "hlgauss": _hlgauss,
    "huber": Huber,
    "mse": MSE,
    "two_hot": _two_hot,
}


def _nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} ({', '.join(sorted(names))})" if names else hint
