"""Pallas for TPU: the logits are read once forward, and read and written once (as the gradient) backward.

A TPU has no gather for the band of bins near a row's target, and two error functions per logit take several times
longer than reading the logit. A band that reaches at most 63 bins to either side lies in two neighbouring chunks of 128
lanes. Each row therefore keeps these two chunks while it goes over all chunks, and the mass is computed for them only:
in the forward pass after the last chunk, in the backward pass before the first. The mass of a wider band is computed
from the density, with two exponentials per logit. The forward pass does this in the blocks that overlap the band of any
of 16 rows; the backward pass does it in all blocks, which takes no longer than the memory traffic.

The maximum and the sum are kept per lane for 16 rows at a time, which gives enough independent operations to hide their
latency. Blocks that contain columns beyond the last bin mask them. Rows beyond the last one are never written.
`benchmarks/kernels_static.py` tabulates the length of the compiled schedule.

No TPU has run this file yet: it is tested in interpret mode, and compiled for v5e, v5p and v6e.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from .projection import Projection, place
from .tpu import (
    LANES,
    ROWS,
    first_chunk,
    forward_kernel,
    groups,
    is_wide,
    like,
    loop,
    mass_of,
    spread,
    table_of,
)

# Rows and columns of a block. The two buffers of a float32 block take 1 MiB forward and 8 MiB backward.
_BLOCKS = {"forward": (64, 2048), "backward": (64, 8192)}


def unsupported(batch: int, padded_bins: int, dtype: np.dtype, projection: Projection) -> str | None:
    """None, or one line that says why this backend cannot compute these arguments."""
    if np.dtype(dtype) not in (np.float32, jnp.bfloat16):
        return f"mosaic_tpu takes logits of float32 or bfloat16, not {np.dtype(dtype)}"
    if padded_bins > 2**24:
        return f"mosaic_tpu counts bins in float32, at most 2**24, not {padded_bins}"
    return None


def forward(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    projection: Projection,
    *,
    interpret: Any = False,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row in float32. The logits are read once, and no array of their size is written."""
    rows, columns = _block("forward", logits.shape[0], projection.num_bins)
    wide = is_wide(projection)
    of_row = pl.BlockSpec((rows, 3), lambda i, k: (i, 0))
    grid = (pl.cdiv(logits.shape[0], rows), pl.cdiv(projection.num_bins, columns))
    out = pl.pallas_call(
        functools.partial(forward_kernel, projection=projection, blocks=grid[1], wide=wide),
        grid=grid,
        in_specs=[of_row, pl.BlockSpec((rows, columns), lambda i, k: (i, k))],
        out_specs=pl.BlockSpec((rows, 2), lambda i, k: (i, 0)),
        out_shape=like(logits, (logits.shape[0], 2), jnp.float32),
        scratch_shapes=[pltpu.VMEM((rows, LANES), jnp.float32)] * 4,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="histogram_cross_entropy_forward",
    )(table_of(*place(projection, targets, jnp.float32)), logits)
    return out[:, 0], out[:, 1]


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
    rows, columns = _block("backward", batch, padded_bins)
    bins, fractions, scale = place(projection, targets, jnp.float32)
    # 0 * fractions makes the gradient NaN in the whole row of a NaN target.
    table = table_of(bins, fractions, scale, lse, d_loss + d_lse + 0 * fractions, d_loss)
    block = pl.BlockSpec((rows, columns), lambda i, k: (i, k))
    return pl.pallas_call(
        functools.partial(
            _backward_kernel,
            projection=projection,
            padded=padded_bins > projection.num_bins,
            wide=is_wide(projection),
        ),
        grid=(pl.cdiv(batch, rows), pl.cdiv(padded_bins, columns)),
        in_specs=[pl.BlockSpec((rows, table.shape[1]), lambda i, k: (i, 0)), block],
        out_specs=block,
        out_shape=like(logits, logits.shape, logits.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="histogram_cross_entropy_backward",
    )(table, logits)


def _backward_kernel(
    table: Any, x_ref: Any, d_ref: Any, *, projection: Projection, padded: bool, wide: bool
) -> None:
    k = pl.program_id(1)
    rows, columns = x_ref.shape
    chunks = columns // LANES
    lane = lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)

    def group(g: jax.Array, masked: bool) -> None:
        at = pl.ds(pl.multiple_of(g * ROWS, ROWS), ROWS)
        row = spread(table, at)
        lse, d_softmax, d_mass = row[3:]
        if not wide:
            first = first_chunk(row[0], projection)
            column = first * LANES + lane
            low, high = (d_mass * mass_of(column + offset, row, projection) for offset in (0, LANES))
            first = first - k * chunks

        def step(c: jax.Array, carry: jax.Array) -> jax.Array:
            here = (at, pl.ds(pl.multiple_of(c * LANES, LANES), LANES))
            column = lane + (k * columns + c * LANES)
            d = jnp.exp(x_ref[here].astype(jnp.float32) - lse) * d_softmax
            if wide:
                d -= d_mass * mass_of(column, row, projection, masked=False)
            else:
                d -= jnp.where(first == c, low, jnp.where(first == c - 1, high, 0.0))
            if masked:
                d = jnp.where(column < projection.num_bins, d, 0.0)
            d_ref[here] = d.astype(d_ref.dtype)
            return carry

        loop(chunks, step, 0)

    groups(rows, group, masked=(k + 1) * columns > projection.num_bins if padded else None)


def _block(direction: str, batch: int, columns: int) -> tuple[int, int]:
    most_rows, most_columns = _BLOCKS[direction]
    return min(most_rows, pl.cdiv(batch, ROWS) * ROWS), min(most_columns, pl.cdiv(columns, LANES) * LANES)
