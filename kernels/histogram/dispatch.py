"""Which implementation computes an operation of `rlcls.kernels`, by platform and size."""

import dataclasses
import importlib
from types import ModuleType

import jax
import numpy as np

from rlcls._errors import nearest

from .projection import Gaussian, OneHot, Projection, TwoHot

IMPLEMENTATIONS = ("reference", "xla", "cpu", "mosaic_tpu", "mosaic_gpu")
# The implementations of each operation; both are names: of a folder, and of a module in it.
KNOWN = {
    "histogram": IMPLEMENTATIONS,
    "linear_histogram": ("reference", "xla", "mosaic_tpu"),
    "categorical_projection": ("reference", "xla"),
}
# The projections whose bins have one width, so that their mass is one formula of bin, fraction and column.
_REGULAR = (Gaussian, OneHot, TwoHot)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """`platform` uses `implementation` from this number of bins and of bytes of logits on."""

    platform: str
    implementation: str
    bins: float
    bytes: float


# `choose` takes the first row that applies and can serve, and `xla` if none does. A row with infinite bins never
# applies: nobody has timed that implementation on its platform.
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
      sizes: the number of rows, sizes that the operation has besides, and the number of logits in a row.
      dtype: the dtype of the logits.
      projection: maps targets to histograms.
      operation: a key of `KNOWN`.
      sharded: whether the bins are sharded over devices.

    Raises:
      ValueError: the implementation asked for is unknown or cannot serve, or the bins of this projection cannot be
        sharded.
    """
    known, kind = KNOWN[operation], type(projection)
    if implementation is not None and implementation not in known:
        raise ValueError(f"unknown implementation {implementation!r}{nearest(implementation, known)}")
    if sharded and kind not in _REGULAR:
        raise ValueError(f"bins of {kind.__name__} cannot be sharded over devices: axis_name is for others")

    def reason(name: str) -> str | None:
        """Why this implementation cannot serve, or None."""
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
    """The platform of arrays without an explicit device."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
