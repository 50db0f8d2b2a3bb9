"""Pallas for Hopper (Mosaic GPU): the logits are read once forward, and read and written once backward.

In the forward pass one warpgroup processes one row. It goes over the tiles of the row and keeps a maximum and a sum for
each position within a tile. It loads the band of bins near the target separately, and computes the mass only there. In
the backward pass one warpgroup processes one tile of a row, and computes the mass only if the band overlaps the tile.
The mass of every bin would need two error functions per logit, which takes longer than the memory traffic.

The older Triton lowering of Pallas is not used, because JAX 0.11 deprecates it.

No GPU has run this file yet: it is tested in interpret mode, and compiled for the H100 (sm_90a).
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from .projection import Gaussian, Projection, place, reach

plgpu: Any = None
_missing = ""
try:
    plgpu = importlib.import_module("jax.experimental.pallas.mosaic_gpu")
except ImportError as error:  # the module needs absl-py, which JAX does not install
    _missing = str(error)

_THREADS = 128  # in a warpgroup
_FORWARD_TILE = 1024
_LOADS = 4  # tiles loaded together, so that the sum is rescaled once for all of them
_BACKWARD_TILE = 2048
_WINDOW = 512  # columns loaded at a time from a band with more columns than a warpgroup has threads
_LOWEST = float(np.finfo(np.float32).min)  # initial maximum; with -inf, a logit of -inf minus it would be NaN


def unsupported(batch: int, padded_bins: int, dtype: np.dtype, projection: Projection) -> str | None:
    """None, or one line that says why this backend cannot compute these arguments."""
    if jax.__version_info__ < (0, 11):
        return f"mosaic_gpu needs JAX 0.11 or newer, not {jax.__version__}"
    if plgpu is None:
        return f"mosaic_gpu cannot be imported: {_missing}"
    if np.dtype(dtype) not in (np.float32, jnp.bfloat16):
        return f"mosaic_gpu takes logits of float32 or bfloat16, not {np.dtype(dtype)}"
    if padded_bins % _THREADS:
        return f"mosaic_gpu needs rows of a multiple of {_THREADS} logits (pad them), not of {padded_bins}"
    return None


def forward(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    projection: Projection,
    *,
    interpret: Any = False,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row in float32. The logits are read once, and no array of their size is written."""
    batch, padded_bins = logits.shape
    bins, fractions, scale = place(projection, targets, jnp.float32)
    below, above = reach(projection, jnp.float32)
    width = _THREADS if below + above < _THREADS else math.gcd(padded_bins, _WINDOW)
    windows = min(pl.cdiv(below + above + 1, width), padded_bins // width)
    start = jnp.clip(bins - below, 0, padded_bins - windows * width)
    of_row = jax.ShapeDtypeStruct((batch,), jnp.float32)
    return _kernel(
        functools.partial(_forward_kernel, projection=projection, width=width, windows=windows),
        out_type=(of_row, of_row),
        grid=(batch,),
        grid_names=("row",),
        kernel_name="histogram_cross_entropy_forward",
        interpret=interpret,
    )(logits, bins, fractions, scale, start)


def backward(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Projection,
    *,
    interpret: Any = False,
) -> Float[Array, "b kp"]:
    """The gradient of the logits, from logits and lse, because the forward pass saves no softmax."""
    batch, padded_bins = logits.shape
    bins, fractions, scale = place(projection, targets, jnp.float32)
    tile = math.gcd(padded_bins, _BACKWARD_TILE)
    return _kernel(
        functools.partial(_backward_kernel, projection=projection, tile=tile),
        out_type=jax.ShapeDtypeStruct(logits.shape, logits.dtype),
        grid=(batch, padded_bins // tile),
        grid_names=("row", "tile"),
        kernel_name="histogram_cross_entropy_backward",
        interpret=interpret,
    )(
        logits,
        bins,
        fractions,
        scale,
        lse,
        # 0 * fractions makes the gradient NaN in the whole row of a NaN target.
        d_loss + d_lse + 0 * fractions,
        d_loss,
    )


def _forward_kernel(
    x: Any,
    bins: Any,
    fractions: Any,
    scale: Any,
    start: Any,
    loss: Any,
    lse: Any,
    *,
    projection: Projection,
    width: int,
    windows: int,
) -> None:
    row = lax.axis_index("row")
    tile = math.gcd(x.shape[1], _FORWARD_TILE)
    layout = _layout(tile, x.dtype)

    def load(c: jax.Array | int, masked: bool) -> jax.Array:
        v = plgpu.load(x.at[row, pl.ds(c * tile, tile)], layout=layout, optimized=False).astype(jnp.float32)
        if not masked:
            return v
        column = plgpu.broadcasted_iota(jnp.int32, (tile,), 0, layout=layout) + c * tile
        return jnp.where(column < projection.num_bins, v, -jnp.inf)

    def step(first: jax.Array | int, count: int, carry: _Pair, masked: bool = False) -> _Pair:
        top, total = carry
        tiles = [load(first + i, masked) for i in range(count)]
        new = functools.reduce(jnp.maximum, tiles, top)
        total = total * jnp.exp(top - new)
        return new, functools.reduce(lambda total, v: total + jnp.exp(v - new), tiles, total)

    full, rest = divmod(projection.num_bins, tile)
    lowest, zero = (plgpu.layout_cast(jnp.full((tile,), x, jnp.float32), layout) for x in (_LOWEST, 0.0))
    carry = (lowest, zero)
    carry = lax.fori_loop(0, full // _LOADS, lambda i, carry: step(i * _LOADS, _LOADS, carry), carry)
    if full % _LOADS:
        carry = step(full - full % _LOADS, full % _LOADS, carry)
    if rest:
        carry = step(full, 1, carry, masked=True)
    top, total = carry
    most = jnp.max(top)
    log_total = jnp.log(jnp.sum(total * jnp.exp(top - most)))

    layout_of_window = plgpu.Layout.WG_STRIDED((width,), vec_size=1)  # a window can start at any column

    def window(i: jax.Array | int, score: jax.Array) -> jax.Array:
        at = start[row] + i * width
        v = plgpu.load(x.at[row, pl.ds(at, width)], layout=layout_of_window, optimized=False).astype(
            jnp.float32
        )
        column = plgpu.broadcasted_iota(jnp.int32, (width,), 0, layout=layout_of_window) + at
        mass = _mass(projection)(column, bins[row], fractions[row], scale[row])
        # A logit of -inf adds nothing where the target has no mass.
        counts = mass != 0
        if projection.num_bins < x.shape[1]:
            counts &= column < projection.num_bins
        return score + jnp.where(counts, mass * (v - most), 0.0)

    score = plgpu.layout_cast(jnp.zeros((width,), jnp.float32), layout_of_window)
    score = window(0, score) if windows == 1 else lax.fori_loop(0, windows, window, score)
    lse[row] = most + log_total
    loss[row] = log_total - jnp.sum(score)


def _backward_kernel(
    x: Any,
    bins: Any,
    fractions: Any,
    scale: Any,
    lse: Any,
    d_softmax: Any,
    d_mass: Any,
    d: Any,
    *,
    projection: Projection,
    tile: int,
) -> None:
    row, start = lax.axis_index("row"), lax.axis_index("tile") * tile
    layout = _layout(tile, x.dtype)
    here = (row, pl.ds(start, tile))
    v = plgpu.load(x.at[here], layout=layout, optimized=False).astype(jnp.float32)
    gradient = jnp.exp(v - lse[row]) * d_softmax[row]
    column = plgpu.broadcasted_iota(jnp.int32, (tile,), 0, layout=layout) + start

    def write(gradient: jax.Array) -> None:
        if projection.num_bins < x.shape[1]:
            gradient = jnp.where(column < projection.num_bins, gradient, 0.0)
        d[here] = gradient.astype(d.dtype)

    below, above = reach(projection, jnp.float32)
    meets = (bins[row] - below < start + tile) & (bins[row] + above >= start)

    @pl.when(meets)
    def _() -> None:
        write(gradient - d_mass[row] * _mass(projection)(column, bins[row], fractions[row], scale[row]))

    @pl.when(jnp.logical_not(meets))
    def _() -> None:
        write(gradient)


_Pair = tuple[jax.Array, jax.Array]


def _kernel(body: Callable[..., None], *, interpret: Any, **arguments: Any) -> Callable[..., Any]:
    """The kernel as a function that also works inside `jax.shard_map`."""
    if interpret is True:
        interpret = plgpu.InterpretGPUParams()
    kernel = plgpu.kernel(body, interpret=interpret or None, **arguments)

    def run(*inputs: jax.Array) -> Any:
        # Without the cast, shard_map would treat the results as equal on all devices and sum their gradients.
        axes = tuple(jax.typeof(inputs[0]).manual_axis_type.varying)
        results = kernel(*inputs)
        return jax.tree.map(lambda x: lax.pcast(x, axes, to="varying"), results) if axes else results

    return run


def _layout(count: int, dtype: np.dtype) -> Any:
    """The layout that gives consecutive logits to consecutive threads, 16 bytes each if the tile is large enough."""
    return plgpu.Layout.WG_STRIDED((count,), vec_size=min(16 // dtype.itemsize, count // _THREADS))


def _mass(projection: Projection) -> Callable[..., Any]:
    if isinstance(projection, Gaussian):
        return functools.partial(projection.mass, erf=_erf)
    return projection.mass


# Coefficients, the constant first, of a polynomial that approximates -log(1 - erf(x)) / x on [0, 4]. They minimise the
# largest error of erf(x) = 1 - exp(-x * polynomial(x)).
_ERF = (
    1.12838025,
    0.636597735,
    0.102919602,
    -0.0195839306,
    5.36892068e-4,
    1.03243194e-3,
    -3.08813244e-4,
    3.1441741e-5,
)


def _erf(x: jax.Array) -> jax.Array:
    """The error function with an error of 2e-7 in float32, because the lowering for warpgroups has no erf."""
    size = jnp.where(x < 0, -x, x)
    size = jnp.where(size > 4, np.float32(4), size)  # jnp.minimum can lose a NaN
    exponent = jnp.zeros_like(x)
    for coefficient in reversed(_ERF):
        exponent = exponent * size + np.float32(coefficient)
    y = 1 - jnp.exp(-exponent * size)
    return jnp.where(x < 0, -y, y)
