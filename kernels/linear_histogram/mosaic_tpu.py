"""Pallas for TPU: tiles of logits are computed from features and kernel in VMEM, and never written to memory.

In the forward pass a block of rows of the features stays in VMEM while the columns of the kernel are loaded in turn.
The loss of each tile is computed as in `histogram.mosaic_tpu`. The backward pass is one Pallas kernel, so that the
logits are computed only once more. A block of the kernel's columns and its gradient stay in VMEM while the rows of the
features are loaded in turn. The gradient of all features, [B, D] in float32, stays in VMEM from the first tile to the
last. The batches of reinforcement learning fit there; those of language models do not.

The backward pass computes the mass of a group of 16 rows only in tiles that overlap the band of one of these rows. With
many bins few tiles do.

No TPU has run this file yet: it is tested in interpret mode, and compiled for v5e, v5p and v6e.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from ..histogram.projection import Projection, place
from ..histogram.tpu import (
    LANES,
    ROWS,
    any_reaches,
    forward_kernel,
    groups,
    is_wide,
    like,
    loop,
    mass_of,
    spread,
    table_of,
)

_VMEM = 60 << 20  # bytes; a core of v5p has 64 MiB, a core of v5e or v6e twice as much
_RESIDENT = 32 << 20  # bytes for the features' gradient; blocks and their copies take up to 25 MiB more
_WIDEST = 4096  # features, because a block has all features of its rows
# The largest number of rows and columns of a block, and of elements of a block of the kernel.
_BLOCKS = {"forward": (512, 2048, 2**20), "backward": (256, 2048, 2**19)}


def unsupported(
    batch: int, width: int, padded_bins: int, dtype: np.dtype, projection: Projection
) -> str | None:
    """None, or one line that says why this backend cannot compute these arguments."""
    if np.dtype(dtype) not in (np.float32, jnp.bfloat16):
        return f"mosaic_tpu takes features and kernel of float32 or bfloat16, not {np.dtype(dtype)}"
    if padded_bins > 2**24:
        return f"mosaic_tpu counts bins in float32, at most 2**24, not {padded_bins}"
    if batch == 0 or width == 0:
        return f"mosaic_tpu needs at least one row and one feature, not {batch} x {width}"
    if width > _WIDEST:
        return f"mosaic_tpu holds whole rows of features in VMEM, at most {_WIDEST} wide, not {width}"
    rows, _ = _block("backward", batch, width, padded_bins)
    resident = 4 * _up(batch, rows) * _up(width, LANES)
    if resident > _RESIDENT:
        return (
            f"mosaic_tpu holds the gradient of all features in VMEM, at most {_RESIDENT >> 20} MiB of float32: "
            f"{batch} x {width} take {resident / 2**20:.0f}"
        )
    return None


def forward(
    features: Float[Array, "b d"],
    kernel: Float[Array, "d kp"],
    bias: Float[Array, " kp"] | None,
    targets: Float[Array, " b"],
    projection: Projection,
    *,
    interpret: Any = False,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row, float32."""
    (batch, width), num_bins = features.shape, projection.num_bins
    rows, columns = _block("forward", batch, width, num_bins)
    features, kernel, bias = _alike(features, kernel, bias)
    table = table_of(*place(projection, targets, jnp.float32))
    grid = (pl.cdiv(batch, rows), pl.cdiv(num_bins, columns))
    out = pl.pallas_call(
        functools.partial(_forward_kernel, projection=projection, blocks=grid[1], wide=is_wide(projection)),
        grid=grid,
        in_specs=[
            pl.BlockSpec((rows, table.shape[1]), lambda i, k: (i, 0)),
            pl.BlockSpec((rows, width), lambda i, k: (i, 0)),
            pl.BlockSpec((width, columns), lambda i, k: (0, k)),
            pl.BlockSpec((1, columns), lambda i, k: (0, k)),
        ],
        out_specs=pl.BlockSpec((rows, 2), lambda i, k: (i, 0)),
        out_shape=like(features, (batch, 2), jnp.float32),
        scratch_shapes=[pltpu.VMEM((rows, n), jnp.float32) for n in (columns, *[LANES] * 4)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM
        ),
        interpret=interpret,
        name="linear_histogram_cross_entropy_forward",
    )(table, features, kernel, bias)
    return out[:, 0], out[:, 1]


def backward(
    features: Float[Array, "b d"],
    kernel: Float[Array, "d kp"],
    bias: Float[Array, " kp"] | None,
    targets: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Projection,
    *,
    interpret: Any = False,
) -> tuple[Float[Array, "b d"], Float[Array, "d kp"], Float[Array, " kp"] | None]:
    """The gradients of features, kernel and bias, in their dtypes."""
    (batch, width), padded_bins = features.shape, kernel.shape[1]
    rows, columns = _block("backward", batch, width, padded_bins)
    x, w, b = _alike(features, kernel, bias)
    table = table_of(*place(projection, targets, jnp.float32), lse, d_loss + d_lse, d_loss)
    # Rows of zeros fill the last block. They add no gradient: their mass is 0, and an lse of inf makes the softmax 0.
    missing = -batch % rows
    x = jnp.pad(x, ((0, missing), (0, 0)))
    table = jnp.concatenate([table, jnp.full((missing, 6), jnp.float32([0, 0, 0, np.inf, 0, 0]))])
    grid = (pl.cdiv(padded_bins, columns), (batch + missing) // rows)
    of_columns = pl.BlockSpec((width, columns), lambda k, i: (0, k))
    of_bias = pl.BlockSpec((1, columns), lambda k, i: (0, k))
    d_features, d_kernel, d_bias = pl.pallas_call(
        functools.partial(
            _backward_kernel,
            projection=projection,
            blocks=grid[1],
            padded=grid[0] * columns > projection.num_bins,
        ),
        grid=grid,
        in_specs=[
            pl.BlockSpec((rows, table.shape[1]), lambda k, i: (i, 0)),
            pl.BlockSpec((rows, width), lambda k, i: (i, 0)),
            of_columns,
            of_bias,
        ],
        out_specs=[
            pl.BlockSpec(x.shape, lambda k, i: (0, 0), pipeline_mode=pl.Buffered(1)),
            of_columns,
            of_bias,
        ],
        out_shape=[like(x, x.shape, jnp.float32), like(x, w.shape, w.dtype), like(x, b.shape, jnp.float32)],
        scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32), pltpu.VMEM((width, columns), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=_VMEM
        ),
        interpret=interpret,
        name="linear_histogram_cross_entropy_backward",
    )(table, x, w, b)
    return (
        d_features[:batch].astype(features.dtype),
        d_kernel.astype(kernel.dtype),
        None if bias is None else d_bias[0].astype(bias.dtype),
    )


def _forward_kernel(
    table: Any,
    x_ref: Any,
    w_ref: Any,
    b_ref: Any,
    out_ref: Any,
    logits_ref: Any,
    *scratch: Any,
    **options: Any,
) -> None:
    logits_ref[...] = _product(x_ref[...], 1, w_ref[...], 0) + b_ref[...]
    forward_kernel(table, logits_ref, out_ref, *scratch, **options)


def _backward_kernel(
    table: Any,
    x_ref: Any,
    w_ref: Any,
    b_ref: Any,
    dx_ref: Any,
    dw_ref: Any,
    db_ref: Any,
    d_ref: Any,
    sum_ref: Any,
    *,
    projection: Projection,
    blocks: int,
    padded: bool,
) -> None:
    """One tile. `d_ref` holds its logits, then their gradient. `sum_ref` holds the gradient of the kernel's columns."""
    k, i = pl.program_id(0), pl.program_id(1)
    rows, columns = d_ref.shape
    lane = lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)
    x, w = x_ref[...], w_ref[...]
    if padded:
        # The gradient of padding is 0, but 0 times the contents of padding could be NaN.
        column = k * columns + lax.broadcasted_iota(jnp.int32, w.shape, 1)
        w = jnp.where(column < projection.num_bins, w, jnp.zeros_like(w))
    d_ref[...] = _product(x, 1, w, 0) + b_ref[...]

    def group(g: jax.Array, masked: bool) -> None:
        at = pl.ds(pl.multiple_of(g * ROWS, ROWS), ROWS)
        row = spread(table, at)
        lse, d_softmax, d_mass = row[3:]

        def each_chunk(change: Callable[[jax.Array, jax.Array], jax.Array]) -> None:
            def step(c: jax.Array, carry: jax.Array) -> jax.Array:
                here = (at, pl.ds(pl.multiple_of(c * LANES, LANES), LANES))
                column = lane + (k * columns + c * LANES)
                d = change(d_ref[here], column)
                d_ref[here] = jnp.where(column < projection.num_bins, d, 0.0) if masked else d
                return carry

            loop(columns // LANES, step, 0)

        each_chunk(lambda logits, _: jnp.exp(logits - lse) * d_softmax)

        @pl.when(any_reaches(row[0], k * columns, columns, projection))
        def _() -> None:
            each_chunk(lambda d, column: d - d_mass * mass_of(column, row, projection, masked=False))

    groups(rows, group, masked=(k + 1) * columns > projection.num_bins if padded else None)

    @pl.when(i == 0)
    def _() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)
        db_ref[...] = jnp.zeros_like(db_ref)

    here = pl.ds(pl.multiple_of(i * rows, ROWS), rows)

    @pl.when(k == 0)
    def _() -> None:
        dx_ref[here, :] = jnp.zeros(x.shape, jnp.float32)

    d = d_ref[...]
    db_ref[...] += d.sum(0, keepdims=True)
    # Products have the precision of their operands, like the layer's own product. Sums are in float32.
    d = d.astype(w.dtype)
    sum_ref[...] += _product(x, 0, d, 0)
    dx_ref[here, :] += _product(d, 1, w, 1)

    @pl.when(i == blocks - 1)
    def _() -> None:
        dw_ref[...] = sum_ref[...].astype(dw_ref.dtype)


def _product(a: jax.Array, a_axis: int, b: jax.Array, b_axis: int) -> jax.Array:
    """The matrix product over these axes, summed in float32."""
    # Products of bfloat16 are exact in float32, and the compiler rejects a higher precision for them.
    precision = lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else None
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _alike(
    features: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features and kernel in a common dtype, and the bias as a row of float32."""
    dtype = jnp.promote_types(features.dtype, kernel.dtype)
    bias = jnp.zeros_like(kernel[0]) if bias is None else bias
    return features.astype(dtype), kernel.astype(dtype), bias[None].astype(jnp.float32)


def _block(direction: str, batch: int, width: int, columns: int) -> tuple[int, int]:
    """The number of rows and columns of a block."""
    most_rows, most_columns, most = _BLOCKS[direction]
    most_columns = max(LANES, min(most_columns, most // width // LANES * LANES))
    return min(most_rows, _up(batch, ROWS)), min(most_columns, _up(columns, LANES))


def _up(x: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-x // unit) * unit
