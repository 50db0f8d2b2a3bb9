"""Pallas for TPU: the logits are read once forward; backward they are read once and their gradient written once.

The chip has no gather to fetch a row's band with, and two error functions for each logit would take it several
times longer than reading the logit. But a band that reaches at most 63 bins to either side lies within two
neighbouring chunks of 128 lanes. While the chunks stream by, each row selects its two; the mass is computed
on these alone, forward at the end of the row, backward before it. Of a wider band the mass is computed where
it lies, by the density (two exponentials): forward in the blocks that the band of any of 16 rows meets,
backward in all, which costs no more than the memory's time.

Maximum and sum run per lane, over 16 rows at a time: enough independent chains to hide the latency of each.
Columns beyond the last bin are masked in the blocks that hold any, rows beyond the last one never leave the
chip. Of the compiled schedule's length `benchmarks/kernels_static.py` makes a table.

No TPU has run this yet: it is tested in interpret mode, and compiled for v5e, v5p and v6e.
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

from .band import place, reach

_LANES = 128
_ROWS = 16  # a group: two registers of float32, one of bfloat16
_UNROLL = 16  # chunks
# Rows and columns of a block. Every block is buffered twice: 1 MiB forward and 8 MiB backward of float32.
_BLOCKS = {"forward": (64, 2048), "backward": (64, 8192)}
_LOWEST = float(np.finfo(np.float32).min)  # where a maximum starts: less -inf it is no NaN


def unsupported(batch: int, padded_bins: int, dtype: Any, projection: Any) -> str | None:
    """None if it can serve, or one line that says why not."""
    if np.dtype(dtype) not in (np.float32, jnp.bfloat16):
        return f"mosaic_tpu takes logits of float32 or bfloat16, not {np.dtype(dtype)}"
    if padded_bins > 2**24:
        return f"mosaic_tpu counts bins in float32, up to 2**24 of them, not {padded_bins}"
    return None


def forward(
    logits: Float[Array, "b kp"], targets: Float[Array, " b"], projection: Any, *, interpret: Any = False
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and log-sum-exp of each row, float32; the logits are read once, nothing of their size is written."""
    rows, columns = _block("forward", logits.shape[0], projection.num_bins)
    wide = _is_wide(projection)
    of_row = pl.BlockSpec((rows, 3), lambda i, k: (i, 0))
    grid = (pl.cdiv(logits.shape[0], rows), pl.cdiv(projection.num_bins, columns))
    out = pl.pallas_call(
        functools.partial(_forward_kernel, projection=projection, blocks=grid[1], wide=wide),
        grid=grid,
        in_specs=[of_row, pl.BlockSpec((rows, columns), lambda i, k: (i, k))],
        out_specs=pl.BlockSpec((rows, 2), lambda i, k: (i, 0)),
        out_shape=_like(logits, (logits.shape[0], 2), jnp.float32),
        scratch_shapes=[pltpu.VMEM((rows, _LANES), jnp.float32)] * 4,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="histogram_cross_entropy_forward",
    )(_table(*place(projection, targets, jnp.float32)), logits)
    return out[:, 0], out[:, 1]


def backward(
    logits: Float[Array, "b kp"],
    targets: Float[Array, " b"],
    lse: Float[Array, " b"],
    d_loss: Float[Array, " b"],
    d_lse: Float[Array, " b"],
    projection: Any,
    *,
    interpret: Any = False,
) -> Float[Array, "b kp"]:
    """The gradient of the logits, from the logits again and lse: the softmax is not kept."""
    batch, padded_bins = logits.shape
    rows, columns = _block("backward", batch, padded_bins)
    bins, fractions, scale = place(projection, targets, jnp.float32)
    # A NaN target is to be seen in all of its row.
    table = _table(bins, fractions, scale, lse, d_loss + d_lse + 0 * fractions, d_loss)
    block = pl.BlockSpec((rows, columns), lambda i, k: (i, k))
    return pl.pallas_call(
        functools.partial(
            _backward_kernel,
            projection=projection,
            padded=padded_bins > projection.num_bins,
            wide=_is_wide(projection),
        ),
        grid=(pl.cdiv(batch, rows), pl.cdiv(padded_bins, columns)),
        in_specs=[pl.BlockSpec((rows, table.shape[1]), lambda i, k: (i, 0)), block],
        out_specs=block,
        out_shape=_like(logits, logits.shape, logits.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="histogram_cross_entropy_backward",
    )(table, logits)


def _forward_kernel(
    table, x_ref, out_ref, top_ref, total_ref, low_ref, high_ref, *, projection, blocks, wide
):
    """One block of columns; `low_ref` and `high_ref` carry a row's two chunks, or (wide) base and score."""
    k = pl.program_id(1)
    rows, columns = x_ref.shape
    chunks = columns // _LANES
    lane = lax.broadcasted_iota(jnp.int32, (_ROWS, _LANES), 1)

    @pl.when(k == 0)
    def _():
        top_ref[...] = jnp.full_like(top_ref, _LOWEST)
        for ref in (total_ref, low_ref, high_ref):
            ref[...] = jnp.zeros_like(ref)

    def group(g, masked):
        at = pl.ds(pl.multiple_of(g * _ROWS, _ROWS), _ROWS)
        row = _spread(table, at)

        def load(c):
            x = x_ref[at, pl.ds(pl.multiple_of(c * _LANES, _LANES), _LANES)].astype(jnp.float32)
            return (
                jnp.where(lane + (k * columns + c * _LANES) < projection.num_bins, x, -jnp.inf)
                if masked
                else x
            )

        old = top_ref[at, :]
        top = _loop(chunks, lambda c, top: jnp.maximum(top, load(c)), old)
        top_ref[at, :] = top
        total = total_ref[at, :] * jnp.exp(old - top)
        if wide:
            total_ref[at, :] = _loop(chunks, lambda c, total: total + jnp.exp(load(c) - top), total)

            @pl.when(k == 0)
            def _():
                # Logits less one number per row, lest the score be a small difference of large ones.
                base = top.max(1, keepdims=True)
                low_ref[at, :] = jnp.broadcast_to(jnp.where(jnp.isfinite(base), base, 0.0), top.shape)

            @pl.when(_any_reaches(row[0], k * columns, columns, projection))
            def _():
                base = low_ref[at, :]

                def step(c, score):
                    column = lane + (k * columns + c * _LANES)
                    return score + _times(_mass(column, row, projection, masked), load(c) - base)

                high_ref[at, :] = _loop(chunks, step, high_ref[at, :])

            return
        first = _first_chunk(row[0], projection) - k * chunks

        def step(c, carry):
            total, low, high = carry
            x = load(c)
            return total + jnp.exp(x - top), jnp.where(first == c, x, low), jnp.where(first == c - 1, x, high)

        total_ref[at, :], low_ref[at, :], high_ref[at, :] = _loop(
            chunks, step, (total, low_ref[at, :], high_ref[at, :])
        )

    _groups(rows, group, masked=k == blocks - 1 if projection.num_bins % columns else None)

    @pl.when(k == blocks - 1)
    def _():
        top = top_ref[...]
        most = top.max(1, keepdims=True)
        log_total = jnp.log((total_ref[...] * jnp.exp(top - most)).sum(1, keepdims=True))
        if wide:
            loss = log_total + (most - low_ref[:, :1]) - high_ref[...].sum(1, keepdims=True)
        else:
            row = _spread(table, slice(None))
            column = _first_chunk(row[0], projection) * _LANES + lax.broadcasted_iota(jnp.int32, top.shape, 1)
            score = _times(_mass(column, row, projection), low_ref[...] - most)
            score += _times(_mass(column + _LANES, row, projection), high_ref[...] - most)
            loss = log_total - score.sum(1, keepdims=True)
        out_ref[...] = jnp.where(
            lax.broadcasted_iota(jnp.int32, out_ref.shape, 1) == 0, loss, most + log_total
        )


def _backward_kernel(table, x_ref, d_ref, *, projection, padded, wide):
    k = pl.program_id(1)
    rows, columns = x_ref.shape
    chunks = columns // _LANES
    lane = lax.broadcasted_iota(jnp.int32, (_ROWS, _LANES), 1)

    def group(g, masked):
        at = pl.ds(pl.multiple_of(g * _ROWS, _ROWS), _ROWS)
        row = _spread(table, at)
        lse, d_softmax, d_mass = row[3:]
        if not wide:
            first = _first_chunk(row[0], projection)
            column = first * _LANES + lane
            low, high = (d_mass * _mass(column + offset, row, projection) for offset in (0, _LANES))
            first = first - k * chunks

        def step(c, carry):
            here = (at, pl.ds(pl.multiple_of(c * _LANES, _LANES), _LANES))
            column = lane + (k * columns + c * _LANES)
            d = jnp.exp(x_ref[here].astype(jnp.float32) - lse) * d_softmax
            if wide:
                d -= d_mass * _mass(column, row, projection, masked=False)
            else:
                d -= jnp.where(first == c, low, jnp.where(first == c - 1, high, 0.0))
            if masked:
                d = jnp.where(column < projection.num_bins, d, 0.0)
            d_ref[here] = d.astype(d_ref.dtype)
            return carry

        _loop(chunks, step, 0)

    _groups(rows, group, masked=(k + 1) * columns > projection.num_bins if padded else None)


def _is_wide(projection: Any) -> bool:
    """Whether a band can lie in more than two chunks."""
    return sum(reach(projection, jnp.float32)) > _LANES


def _block(direction: str, batch: int, columns: int) -> tuple[int, int]:
    most_rows, most_columns = _BLOCKS[direction]
    return min(most_rows, pl.cdiv(batch, _ROWS) * _ROWS), min(most_columns, pl.cdiv(columns, _LANES) * _LANES)


def _table(*columns: Any) -> jax.Array:
    """What is known of each row, as one [B, n]: a [B, 1] of each would fill a tile of 128 lanes by itself."""
    return jnp.stack([c.astype(jnp.float32) for c in columns], axis=1)


def _like(x: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A result that varies over the mesh axes of a shard_map that x does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def _spread(table: Any, rows: Any) -> list[jax.Array]:
    """The columns of the table, each over all lanes."""
    part = table[rows, :]
    return [jnp.broadcast_to(part[:, i : i + 1], (part.shape[0], _LANES)) for i in range(part.shape[1])]


def _first_chunk(bins: jax.Array, projection: Any) -> jax.Array:
    below, _ = reach(projection, jnp.float32)
    # A shift: what // does for negative numbers asks for the device at hand, and compiling ahead there is none.
    return jnp.maximum(bins.astype(jnp.int32) - below, 0) >> (_LANES.bit_length() - 1)


def _any_reaches(bins: jax.Array, start: Any, count: int, projection: Any) -> jax.Array:
    """Whether the band of any of these rows meets the columns start, ..., start + count - 1."""
    below, above = reach(projection, jnp.float32)
    bins = bins.astype(jnp.int32)
    meets = (bins - below < start + count) & (bins + above >= start)
    return jnp.max(jnp.where(meets, 1.0, 0.0)) > 0


def _mass(columns: jax.Array, row: list[jax.Array], projection: Any, masked: bool = True) -> jax.Array:
    """The mass of the columns; masked, none beyond the last bin."""
    mass = projection.mass(columns, row[0].astype(jnp.int32), row[1], row[2])
    return jnp.where(columns < projection.num_bins, mass, 0.0) if masked else mass


def _times(mass: jax.Array, x: jax.Array) -> jax.Array:
    """A logit of -inf costs nothing where there is no mass."""
    return jnp.where(mass == 0, 0.0, mass * x)


def _loop(chunks: int, step: Any, carry: Any) -> Any:
    return lax.fori_loop(0, chunks, step, carry, unroll=min(_UNROLL, chunks))


def _groups(rows: int, group: Any, masked: Any) -> None:
    """All groups of a block; those of blocks with padding in them pay for the mask, and no others."""

    def run(mask: bool) -> None:
        lax.fori_loop(0, rows // _ROWS, lambda g, carry: (group(g, mask), carry)[1], 0)

    if masked is None:
        run(False)
    else:
        pl.when(masked)(lambda: run(True))
        pl.when(jnp.logical_not(masked))(lambda: run(False))
