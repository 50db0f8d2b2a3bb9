"""Code shared by the TPU kernels: the loss of a block of logits, and parts of its gradient.

A kernel goes over a block in groups of 16 rows and chunks of 128 lanes, in float32. The numbers that it needs for each
row, such as bin, fraction and scale, are the columns of one table.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import ArrayLike, DTypeLike

from ..arrays import weigh
from .projection import Projection, reach

LANES = 128
ROWS = 16  # rows of a group: two registers of float32, one of bfloat16
UNROLL = 16  # chunks per step of a loop
_LOWEST = float(np.finfo(np.float32).min)  # initial maximum; with -inf, a logit of -inf minus it would be NaN


def forward_kernel(
    table: Any,
    x_ref: Any,
    out_ref: Any,
    top_ref: Any,
    total_ref: Any,
    low_ref: Any,
    high_ref: Any,
    *,
    projection: Projection,
    blocks: int,
    wide: bool,
) -> None:
    """One block of columns. `low_ref` and `high_ref` hold a row's two chunks, or with `wide` its base and score."""
    k = pl.program_id(1)
    rows, columns = x_ref.shape
    chunks = columns // LANES
    lane = lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)

    @pl.when(k == 0)
    def _() -> None:
        top_ref[...] = jnp.full_like(top_ref, _LOWEST)
        for ref in (total_ref, low_ref, high_ref):
            ref[...] = jnp.zeros_like(ref)

    def group(g: jax.Array, masked: bool) -> None:
        at = pl.ds(pl.multiple_of(g * ROWS, ROWS), ROWS)
        row = spread(table, at)

        def load(c: jax.Array) -> jax.Array:
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
            def _() -> None:
                # The score uses logits minus one number per row, because large logits would lose digits of the loss.
                base = top.max(1, keepdims=True)
                low_ref[at, :] = jnp.broadcast_to(jnp.where(jnp.isfinite(base), base, 0.0), top.shape)

            @pl.when(any_reaches(row[0], k * columns, columns, projection))
            def _() -> None:
                base = low_ref[at, :]

                def step(c: jax.Array, score: jax.Array) -> jax.Array:
                    column = lane + (k * columns + c * LANES)
                    return score + weigh(mass_of(column, row, projection, masked), load(c) - base)

                high_ref[at, :] = loop(chunks, step, high_ref[at, :])

            return
        first = first_chunk(row[0], projection) - k * chunks

        def step(c: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            total, low, high = carry
            x = load(c)
            return total + jnp.exp(x - top), jnp.where(first == c, x, low), jnp.where(first == c - 1, x, high)

        total_ref[at, :], low_ref[at, :], high_ref[at, :] = loop(
            chunks, step, (total, low_ref[at, :], high_ref[at, :])
        )

    groups(rows, group, masked=k == blocks - 1 if projection.num_bins % columns else None)

    @pl.when(k == blocks - 1)
    def _() -> None:
        top = top_ref[...]
        most = top.max(1, keepdims=True)
        log_total = jnp.log((total_ref[...] * jnp.exp(top - most)).sum(1, keepdims=True))
        if wide:
            loss = log_total + (most - low_ref[:, :1]) - high_ref[...].sum(1, keepdims=True)
        else:
            row = spread(table, slice(None))
            column = first_chunk(row[0], projection) * LANES + lax.broadcasted_iota(jnp.int32, top.shape, 1)
            score = weigh(mass_of(column, row, projection), low_ref[...] - most)
            score += weigh(mass_of(column + LANES, row, projection), high_ref[...] - most)
            loss = log_total - score.sum(1, keepdims=True)
        out_ref[...] = jnp.where(
            lax.broadcasted_iota(jnp.int32, out_ref.shape, 1) == 0, loss, most + log_total
        )


def is_wide(projection: Projection) -> bool:
    """Whether the band of a target can overlap more than two chunks."""
    return sum(reach(projection, jnp.float32)) > LANES


def table_of(*columns: jax.Array) -> jax.Array:
    """The numbers of each row as one [B, n] array. A separate [B, 1] array for each would be padded to 128 lanes."""
    return jnp.stack([c.astype(jnp.float32) for c in columns], axis=1)


def like(x: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """The type of a result that, inside shard_map, varies over the same mesh axes as `x`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def spread(table: Any, rows: Any) -> list[jax.Array]:
    """The columns of these rows of the table, each broadcast to all lanes."""
    part = table[rows, :]
    return [jnp.broadcast_to(part[:, i : i + 1], (part.shape[0], LANES)) for i in range(part.shape[1])]


def first_chunk(bins: jax.Array, projection: Projection) -> jax.Array:
    """The first chunk that each row's band can overlap."""
    below, _ = reach(projection, jnp.float32)
    # This shifts instead of dividing: JAX's // looks up the current device, which ahead-of-time compilation lacks.
    return jnp.maximum(bins.astype(jnp.int32) - below, 0) >> (LANES.bit_length() - 1)


def any_reaches(bins: jax.Array, start: ArrayLike, count: int, projection: Projection) -> jax.Array:
    """Whether the band of any of these rows overlaps the columns start, ..., start + count - 1."""
    below, above = reach(projection, jnp.float32)
    bins = bins.astype(jnp.int32)
    meets = (bins - below < start + count) & (bins + above >= start)
    return jnp.max(jnp.where(meets, 1.0, 0.0)) > 0


def mass_of(
    columns: jax.Array, row: list[jax.Array], projection: Projection, masked: bool = True
) -> jax.Array:
    """The mass of the columns; with `masked`, 0 beyond the last bin."""
    mass = projection.mass(columns, row[0].astype(jnp.int32), row[1], row[2])
    return jnp.where(columns < projection.num_bins, mass, 0.0) if masked else mass


def loop(chunks: int, step: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
    """A partly unrolled loop of `step(chunk, carry)` over all chunks."""
    return lax.fori_loop(0, chunks, step, carry, unroll=min(UNROLL, chunks))


def groups(rows: int, group: Callable[[jax.Array, bool], None], masked: ArrayLike | None) -> None:
    """Calls `group(number, masked)` for all groups of a block. `masked` says whether the block contains padding."""

    def run(mask: bool) -> None:
        def step(g: jax.Array, carry: jax.Array) -> jax.Array:
            group(g, mask)
            return carry

        lax.fori_loop(0, rows // ROWS, step, 0)

    if masked is None:
        run(False)
    else:
        pl.when(masked)(lambda: run(True))
        pl.when(jnp.logical_not(masked))(lambda: run(False))
