"""Chooses the implementation of an operation of `rlcls.kernels`, by platform and size."""

import dataclasses
import importlib
from types import ModuleType

import jax
import numpy as np

from rlcls._errors import nearest

from .projection import Gaussian, OneHot, Projection, TwoHot

IMPLEMENTATIONS = ("reference", "xla", "cpu", "mosaic_tpu", "mosaic_gpu")
# Each operation (a folder) and its implementations (modules in that folder).
KNOWN = {
    "histogram": IMPLEMENTATIONS,
    "linear_histogram": ("reference", "xla", "mosaic_tpu"),
    "categorical_projection": ("reference", "xla"),
}
# Projections with bins of one width. All implementations compute their mass; others need "reference".
_REGULAR = (Gaussian, OneHot, TwoHot)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """`platform` uses `implementation` for at least this many bins and this many bytes of logits."""

    platform: str
    implementation: str
    bins: float
    bytes: float


# `choose` takes the first row that applies and whose implementation supports the arguments, else `xla`. A row with
# infinite bins never applies, because that implementation has not been timed on its platform.
THRESHOLDS = (
    Threshold("cpu", "cpu", bins=65, bytes=0),
    Threshold("cpu", "reference", bins=2, bytes=0),  # slightly faster than any custom gradient
    Threshold("tpu", "mosaic_tpu", bins=float("inf"), bytes=64e6),
    Threshold("gpu", "mosaic_gpu", bins=float("inf"), bytes=64e6),
)
LINEAR_THRESHOLDS = (Threshold("tpu", "mosaic_tpu", bins=float("inf"), bytes=0),)


def choose(
    implementation: str | None,
    sizes: tuple[int, ...],
    dtype: np.dtype,
    projection: Projection,
    *,
    operation: str = "histogram",
    sharded: bool = False,
) -> str:
    """The name of the implementation that computes an operation.

    Args:
      implementation: the name that the caller asks for, or None.
      sizes: the number of rows, further sizes of the operation, and the number of logits in a row.
      dtype: the dtype of the logits.
      projection: maps targets to histograms.
      operation: a key of `KNOWN`.
      sharded: whether the bins are sharded over devices.

    Raises:
      ValueError: the implementation is unknown or cannot compute these arguments, or the bins of this projection
        cannot be sharded.
    """
    known, kind = KNOWN[operation], type(projection)
    if implementation is not None and implementation not in known:
        raise ValueError(f"unknown implementation {implementation!r}{nearest(implementation, known)}")
    if sharded and kind not in _REGULAR:
        raise ValueError(
            f"bins of {kind.__name__} cannot be sharded over devices: axis_name needs bins of one width"
        )

    def reason(name: str) -> str | None:
        """Why this implementation cannot compute the operation, or None if it can."""
        if sharded and name != "xla":
            return "bins sharded over devices are for 'xla'"
        if name != "reference" and kind not in _REGULAR:
            return f"{kind.__name__} is for 'reference'"
        if name in ("reference", "xla"):
            return None
        return backend(name, operation).unsupported(*sizes, dtype, projection)

    if implementation is not None:
        if why := reason(implementation):
            raise ValueError(f"implementation {implementation!r} cannot serve: {why}")
        return implementation
    platform, size = _platform(), sizes[0] * sizes[-1] * dtype.itemsize
    thresholds = {"histogram": THRESHOLDS, "linear_histogram": LINEAR_THRESHOLDS}.get(operation, ())
    for row in thresholds:
        applies = row.platform == platform and projection.num_bins >= row.bins and size >= row.bytes
        if applies and reason(row.implementation) is None:
            return row.implementation
    return "xla" if kind in _REGULAR else "reference"


def backend(name: str, operation: str = "histogram") -> ModuleType:
    """The module of an implementation. Pallas is imported only here."""
    return importlib.import_module(f"..{operation}.{name}", __package__)


def _platform() -> str:
    """The platform on which JAX puts arrays that have no explicit device."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
