"""The memory traffic of C51's projected cross-entropy, beside its minimum. kernels_static.py reports both."""

from typing import Any

import _chips
import _report
import _traffic
import jax
import jax.numpy as jnp

from rlcls import kernels
from rlcls.kernels.categorical_projection import xla

SHAPES = ((4096, 51), (4096, 1001), (1024, 8192))  # rows, bins
NAMES = ("reference", "xla")
# The minimum in units of the logits: the forward pass and the backward pass each read logits and probabilities once,
# and the backward pass writes the gradient.
LEAST = 5
# A comparison of an atom with a bin takes two comparisons, two selections and one addition.
_PAIR = 5


def traffic() -> list[dict[str, Any]]:
    """The traffic of value and gradient, compiled for both chips with float32 logits."""
    rows = []
    for chip in ("v5e", "H100"):
        for batch, bins in SHAPES:
            for name in NAMES:
                compiled = _chips.compile_for(chip, _value_and_gradient(bins, name), *_shapes(batch, bins))
                program, logits = compiled.as_text(), 4 * batch * bins
                rows.append(
                    {
                        "chip": chip,
                        "implementation": name,
                        "batch": batch,
                        "bins": bins,
                        "units": round(_traffic.moved_bytes(program) / logits, 2),
                        # The program of a TPU says which arrays are on the chip. That of a GPU does not say what is
                        # in the cache.
                        "units_cached": round(
                            _traffic.moved_bytes(program, cached=chip == "H100") / logits, 2
                        ),
                        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
                    }
                )
    return rows


def text(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in (row for row in rows if row["implementation"] == "xla"):
        size = {key: row[key] for key in ("chip", "batch", "bins")}
        (naive,) = [other for other in rows if other == other | size | {"implementation": "reference"}]
        # An atom is compared with all bins in both passes, or reads two logits forward and adds to two backward.
        compared = row["chip"] == "v5e" or row["bins"] <= xla._FEW_BINS
        work = 2 * (_PAIR * row["bins"] if compared else 2) * row["batch"] * row["bins"]
        lines.append(
            (
                f"{row['chip']} {row['batch']} x {row['bins']}",
                f"{naive['units']:.2f} ({naive['temporary_bytes'] / 2**20:.1f})",
                f"{row['units']:.2f} ({row['temporary_bytes'] / 2**20:.1f})",
                f"{row['units_cached']:.2f}",
                f"{LEAST:.2f}",
                f"{work / 1e9:.2f}",
            )
        )
    return [
        "## C51's projected cross-entropy: memory traffic of loss and gradient, in units of the logits' bytes",
        "`reference` forms the projected distribution and takes the cross-entropy to it. `xla` goes by blocks of 2**18 "
        "logits; the third column leaves out, on an H100, what a block writes for itself and reads again (up to 1 MiB "
        "an array, so it is in the L2 cache of 50 MiB; sizes of a single block are counted whole). The least is of a "
        "kernel that reads logits and probabilities once forward and once backward, and writes the gradient. The last "
        "column has the projection's operations in `xla`, in thousand millions: comparisons, selections and "
        "additions of every atom and every bin, or (on an H100, beyond 64 bins) lookups and additions to memory.",
        _report.table(
            ("float32", "`reference`", "`xla`", "`xla`, cached", "least", "projection, 1e9"),
            lines,
        ),
    ]


def _value_and_gradient(bins: int, name: str) -> Any:
    projection = kernels.TwoHot(-10.0, 10.0, bins)

    def mean(logits, probs, rewards, discounts):
        return kernels.categorical_projection_cross_entropy(
            logits, probs, rewards, discounts, projection, implementation=name
        ).mean()

    return jax.value_and_grad(mean)


def _shapes(batch: int, bins: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    whole, scalars = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, bins), (batch,)))
    return whole, whole, scalars, scalars
