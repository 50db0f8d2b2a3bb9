"""Which implementation serves which platform and size."""

import dataclasses
import difflib
import importlib
from collections.abc import Callable
from typing import Any

import jax

from .projection import Gaussian, OneHot, TwoHot

IMPLEMENTATIONS = ("reference", "xla", "cpu", "mosaic_tpu", "mosaic_gpu")
SHARDED = "bins sharded over devices are for 'xla'"
# The projections whose mass is one formula of bin, fraction and column.
_REGULAR = (Gaussian, OneHot, TwoHot)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """`implementation` is taken on `platform` from so many bins and so many bytes of logits on."""

    platform: str
    implementation: str
    bins: float
    bytes: float


# The first that applies and can serve is taken, or else `xla`. Infinite: not before it has been timed there.
THRESHOLDS = (
    Threshold("cpu", "cpu", bins=65, bytes=0),
    Threshold("cpu", "reference", bins=2, bytes=0),  # a little faster than any custom gradient
    Threshold("tpu", "mosaic_tpu", bins=float("inf"), bytes=64e6),
    Threshold("gpu", "mosaic_gpu", bins=float("inf"), bytes=64e6),
)
# The same for the loss of a linear layer.
LINEAR_THRESHOLDS = (Threshold("tpu", "mosaic_tpu", bins=float("inf"), bytes=0),)


def choose(
    implementation: str | None, shape: tuple[int, ...], dtype: Any, projection: Any, *, sharded: bool = False
) -> str:
    """The name of the implementation for logits of this shape [B, Kp] and dtype.

    Raises:
      ValueError: the one asked for is unknown, or cannot serve.
    """
    check_known(implementation, IMPLEMENTATIONS)
    check_sharded(projection, sharded)
    if implementation is None:
        return _best(shape, dtype, projection, sharded)
    if reason := _reason(implementation, shape, dtype, projection, sharded):
        raise ValueError(f"implementation {implementation!r} cannot serve: {reason}")
    return implementation


def check_known(implementation: str | None, known: tuple[str, ...]) -> None:
    """Refuses a name that is none of the known ones."""
    if implementation is not None and implementation not in known:
        close = difflib.get_close_matches(str(implementation), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown implementation {implementation!r}{hint} ({', '.join(known)})")


def check_sharded(projection: Any, sharded: bool) -> None:
    """Refuses bins over several devices of which no device could tell its share."""
    if sharded and not is_regular(projection):
        raise ValueError(
            f"bins of {type(projection).__name__} cannot be sharded over devices: axis_name is for others"
        )


def is_regular(projection: Any) -> bool:
    """Whether the projection's bins are of one width, so that its mass is one formula."""
    return type(projection) in _REGULAR


def backend(name: str) -> Any:
    """The module of an implementation; Pallas is imported only here."""
    return importlib.import_module(f"{__package__}.{name}")


def first(
    thresholds: tuple[Threshold, ...], bins: int, size: int, reason: Callable[[str], str | None]
) -> str | None:
    """The first implementation that applies to so many bins and bytes here and has no reason not to serve."""
    platform = _platform()
    for row in thresholds:
        applies = row.platform == platform and bins >= row.bins and size >= row.bytes
        if applies and reason(row.implementation) is None:
            return row.implementation
    return None


def _best(shape: tuple[int, ...], dtype: Any, projection: Any, sharded: bool) -> str:
    size = shape[0] * shape[1] * dtype.itemsize
    found = first(
        THRESHOLDS,
        projection.num_bins,
        size,
        lambda name: _reason(name, shape, dtype, projection, sharded),
    )
    return found or ("xla" if is_regular(projection) else "reference")


def _reason(name: str, shape: tuple[int, ...], dtype: Any, projection: Any, sharded: bool) -> str | None:
    """Why an implementation cannot serve, or None."""
    if sharded and name != "xla":
        return SHARDED
    if name == "reference":
        return None
    if not is_regular(projection):
        return f"{type(projection).__name__} is for 'reference'"
    return backend(name).unsupported(*shape, dtype, projection)


def _platform() -> str:
    """Where arrays go that nobody has placed."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
