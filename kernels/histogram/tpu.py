"""What the TPU kernels share: the loss of a block of logits, and the parts that their gradients are made of too.

A block is worked on in groups of 16 rows by chunks of 128 lanes, in float32. Of each row the kernels know a few
numbers, which come as the columns of one table.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from .band import reach

LANES = 128
ROWS = 16  # a group: two registers of float32, one of bfloat16
UNROLL = 16  # chunks
_LOWEST = float(np.finfo(np.float32).min)  # where a maximum starts: less -inf it is no NaN


def forward_kernel(table, x_ref, out_ref, top_ref, total_ref, low_ref, high_ref, *, projection, blocks, wide):
    """One block of columns; `low_ref` and `high_ref` carry a row's two chunks, or (wide) base and score."""
    k = pl.program_id(1)
    rows, columns = x_ref.shape
    chunks = columns // LANES
    lane = lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)

    @pl.when(k == 0)
    def _():
        top_ref[...] = jnp.full_like(top_ref, _LOWEST)
        for ref in (total_ref, low_ref, high_ref):
            ref[...] = jnp.zeros_like(ref)

    def group(g, masked):
        at = pl.ds(pl.multiple_of(g * ROWS, ROWS), ROWS)
        row = spread(table, at)

        def load(c):
            x = x_ref[at, pl.ds(pl.multiple_of(c * LANES, LANES), LANES)].astype(jnp.float32)
            return (
                jnp.where(lane + (k * columns + c * LANES) < projection.num_bins, x, -jnp.inf)
                if masked
                else x
            )

        old = top_ref[at, :]
        top = loop(chunks, lambda c, top: jnp.maximum(top, load(c)), old)
        top_ref[at, :] = top
        total = total_ref[at, :] * jnp.exp(old - top)
        if wide:
            total_ref[at, :] = loop(chunks, lambda c, total: total + jnp.exp(load(c) - top), total)

            @pl.when(k == 0)
            def _():
                # Logits less one number per row, lest the score be a small difference of large ones.
                base = top.max(1, keepdims=True)
                low_ref[at, :] = jnp.broadcast_to(jnp.where(jnp.isfinite(base), base, 0.0), top.shape)

            @pl.when(any_reaches(row[0], k * columns, columns, projection))
            def _():
                base = low_ref[at, :]

                def step(c, score):
                    column = lane + (k * columns + c * LANES)
                    return score + times(mass_of(column, row, projection, masked), load(c) - base)

                high_ref[at, :] = loop(chunks, step, high_ref[at, :])

            return
        first = first_chunk(row[0], projection) - k * chunks

        def step(c, carry):
            total, low, high = carry
            x = load(c)
            return total + jnp.exp(x - top), jnp.where(first == c, x, low), jnp.where(first == c - 1, x, high)

        total_ref[at, :], low_ref[at, :], high_ref[at, :] = loop(
            chunks, step, (total, low_ref[at, :], high_ref[at, :])
        )

    groups(rows, group, masked=k == blocks - 1 if projection.num_bins % columns else None)

    @pl.when(k == blocks - 1)
    def _():
        top = top_ref[...]
        most = top.max(1, keepdims=True)
        log_total = jnp.log((total_ref[...] * jnp.exp(top - most)).sum(1, keepdims=True))
        if wide:
            loss = log_total + (most - low_ref[:, :1]) - high_ref[...].sum(1, keepdims=True)
        else:
            row = spread(table, slice(None))
            column = first_chunk(row[0], projection) * LANES + lax.broadcasted_iota(jnp.int32, top.shape, 1)
            score = times(mass_of(column, row, projection), low_ref[...] - most)
            score += times(mass_of(column + LANES, row, projection), high_ref[...] - most)
            loss = log_total - score.sum(1, keepdims=True)
        out_ref[...] = jnp.where(
            lax.broadcasted_iota(jnp.int32, out_ref.shape, 1) == 0, loss, most + log_total
        )


def is_wide(projection: Any) -> bool:
    """Whether a band can lie in more than two chunks."""
    return sum(reach(projection, jnp.float32)) > LANES


def table_of(*columns: Any) -> jax.Array:
    """What is known of each row, as one [B, n]: a [B, 1] of each would fill a tile of 128 lanes by itself."""
    return jnp.stack([c.astype(jnp.float32) for c in columns], axis=1)


def like(x: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A result that varies over the mesh axes of a shard_map that x does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def spread(table: Any, rows: Any) -> list[jax.Array]:
    """The columns of the table, each over all lanes."""
    part = table[rows, :]
    return [jnp.broadcast_to(part[:, i : i + 1], (part.shape[0], LANES)) for i in range(part.shape[1])]


def first_chunk(bins: jax.Array, projection: Any) -> jax.Array:
    below, _ = reach(projection, jnp.float32)
    # A shift: what // does for negative numbers asks for the device at hand, and compiling ahead there is none.
    return jnp.maximum(bins.astype(jnp.int32) - below, 0) >> (LANES.bit_length() - 1)


def any_reaches(bins: jax.Array, start: Any, count: int, projection: Any) -> jax.Array:
    """Whether the band of any of these rows meets the columns start, ..., start + count - 1."""
    below, above = reach(projection, jnp.float32)
    bins = bins.astype(jnp.int32)
    meets = (bins - below < start + count) & (bins + above >= start)
    return jnp.max(jnp.where(meets, 1.0, 0.0)) > 0


def mass_of(columns: jax.Array, row: list[jax.Array], projection: Any, masked: bool = True) -> jax.Array:
    """The mass of the columns; masked, none beyond the last bin."""
    mass = projection.mass(columns, row[0].astype(jnp.int32), row[1], row[2])
    return jnp.where(columns < projection.num_bins, mass, 0.0) if masked else mass


def times(mass: jax.Array, x: jax.Array) -> jax.Array:
    """A logit of -inf costs nothing where there is no mass."""
    return jnp.where(mass == 0, 0.0, mass * x)


def loop(chunks: int, step: Any, carry: Any) -> Any:
    return lax.fori_loop(0, chunks, step, carry, unroll=min(UNROLL, chunks))


def groups(rows: int, group: Any, masked: Any) -> None:
    """All groups of a block; those of blocks with padding in them pay for the mask, and no others."""

    def run(mask: bool) -> None:
        lax.fori_loop(0, rows // ROWS, lambda g, carry: (group(g, mask), carry)[1], 0)

    if masked is None:
        run(False)
    else:
        pl.when(masked)(lambda: run(True))
        pl.when(jnp.logical_not(masked))(lambda: run(False))
