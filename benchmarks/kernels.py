"""Measures accuracy, time and share of the memory bandwidth of the fused histogram cross-entropy.

    python benchmarks/kernels.py                                # the whole grid of this platform, some minutes
    python benchmarks/kernels.py --sizes 256x101 --rounds 5     # seconds

The benchmark needs jax, numpy and rlcls. If optax is installed, the table also has its loss. Every implementation is
first compared with float64 on new random inputs. Each round of a cell then times all programs in turn. The table lists
implementations that cannot run on this platform, with the reason. The bandwidth is that of a measured copy. The floor
of a program is the minimum that it must move: the logits once forward, and for value and gradient the logits twice and
the gradient once. The fused loss of a linear layer is timed beside that of a layer that stores its logits.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _linear_cell
import _report
import jax
import jax.numpy as jnp
import numpy as np

from rlcls import kernels

try:
    import optax
except ImportError:
    optax = None

SIZES = {
    "accelerator": ["4096x101", "4096x1001", "4096x8192", "1024x131072"],
    "cpu": ["256x51", "4096x51", "256x101", "256x1001", "1024x1001", "256x8192", "32x131072"],
}
# Sizes of a linear layer: rows, features, bins.
LINEAR_SIZES = {
    "accelerator": ["1024x256x131072", "1024x1024x131072", "4096x1024x131072"],
    "cpu": ["64x256x8192"],
}
# The minimum memory traffic, in units of the logits.
FLOOR = {"forward": 1, "gradient": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    platform = jax.default_backend()
    on_cpu = platform == "cpu"
    grid = "cpu" if on_cpu else "accelerator"
    parser.add_argument("--sizes", nargs="*", default=SIZES[grid], metavar="BxK")
    parser.add_argument("--linear-sizes", nargs="*", default=LINEAR_SIZES[grid], metavar="BxDxK")
    parser.add_argument("--dtypes", nargs="+", default=["float32"] if on_cpu else ["float32", "bfloat16"])
    parser.add_argument("--sigma-ratio", type=float, default=0.75, help="sigma over the width of a bin")
    parser.add_argument("--rounds", type=int, default=100, help="at most, of each cell")
    parser.add_argument("--seconds", type=float, default=20, help="of each cell; at least 5 rounds are done")
    parser.add_argument("--name", default=f"kernels_{platform}", help="of the files")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts = _report.machine() | {"device": jax.devices()[0].device_kind}
    bandwidth = copy_bandwidth()
    cells = []
    for size in arguments.sizes:
        batch, bins = map(int, size.split("x"))
        for dtype in arguments.dtypes:
            cell = measure(batch, bins, dtype, arguments)
            cells.append({"batch": batch, "bins": bins, "dtype": dtype} | cell)
            print(_lines(_rows(cells[-1], bandwidth), cells[-1]), flush=True)
    linear = []
    for size in arguments.linear_sizes:
        shape = dict(zip(("batch", "width", "bins"), map(int, size.split("x")), strict=True))
        for dtype in arguments.dtypes:
            cell, programs = _linear_cell.prepare(*shape.values(), dtype, arguments.sigma_ratio)
            cell["milliseconds"] = _interleaved(programs, arguments.rounds, arguments.seconds)
            linear.append(shape | {"dtype": dtype} | cell)
            print(_lines(_linear_rows(linear[-1]), linear[-1]), flush=True)
    data = {"machine": facts, "copy_bytes_per_second": bandwidth, "cells": cells, "linear": linear}
    data |= {"platform": platform, "sigma_ratio": arguments.sigma_ratio}
    _report.write(arguments.name, data, _text(data), arguments.out)


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy that is larger than the caches; the best of twenty."""
    x = jnp.zeros((1 << 28) if jax.default_backend() != "cpu" else (1 << 25), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    jax.block_until_ready(copy(x))
    best = min(_seconds(lambda: copy(x)) for _ in range(20))
    return 2 * x.nbytes / best


def measure(batch: int, bins: int, dtype: str, arguments: Any) -> dict[str, Any]:
    """Errors against float64 and milliseconds of every implementation, naive XLA and optax, for one size."""
    projection = kernels.Gaussian(-10.7, 9.3, bins, arguments.sigma_ratio * 20 / bins)
    random = np.random.default_rng()
    logits = jnp.asarray(3 * random.standard_normal((batch, bins), np.float32), dtype)
    targets = jnp.asarray(random.uniform(-10.7, 9.3, batch), jnp.float32)
    checked, errors, programs, refused = _truth(projection, logits, targets), {}, {}, {}
    for name, loss in _losses(projection).items():
        forward = jax.jit(loss)
        gradient = jax.jit(jax.value_and_grad(lambda x, t, loss=loss: loss(x, t).mean()))
        rows = len(checked[0])
        try:
            jax.block_until_ready(gradient(logits, targets))
            found = jax.jit(jax.value_and_grad(lambda x, t, loss=loss: loss(x, t).sum()))(
                logits[:rows], targets[:rows]
            )
            values = loss(logits[:rows], targets[:rows])
        except _linear_cell.REFUSALS as error:
            refused[name] = str(error).splitlines()[0]
            continue
        errors[name] = {
            "loss": float(abs(np.asarray(values, np.float64) - checked[0]).max()),
            "gradient": float(abs(np.asarray(found[1], np.float64) - checked[1]).max()),
        }
        for kind, program in (("forward", forward), ("gradient", gradient)):
            programs[f"{kind} {name}"] = functools.partial(program, logits, targets)
    times = _interleaved(programs, arguments.rounds, arguments.seconds)
    return {"errors": errors, "refused": refused, "milliseconds": times}


def _losses(projection: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """Maps each name to a function of logits and targets."""
    found = {"naive": lambda x, t: _naive(x, projection.encode(t))}
    for name in kernels.IMPLEMENTATIONS[1:]:
        found[name] = functools.partial(_fused, projection=projection, implementation=name)
    found["chosen"] = functools.partial(_fused, projection=projection)
    if optax is not None:
        found["optax"] = lambda x, t: optax.softmax_cross_entropy(x.astype(jnp.float32), projection.encode(t))
    return found


def _fused(logits: Any, targets: Any, **options: Any) -> Any:
    return kernels.histogram_cross_entropy(logits, targets, **options)


def _naive(logits: Any, probs: Any) -> Any:
    return -(probs * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(-1)


def _truth(projection: Any, logits: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient of the first rows in float64, by NumPy."""
    rows = max(1, min(len(targets), (1 << 22) // projection.num_bins))
    x = np.asarray(logits[:rows].astype(jnp.float32), np.float64)
    return _linear_cell.cross_entropy(x, projection.encode(np.asarray(targets[:rows], np.float64)))


def _interleaved(
    programs: dict[str, Callable[[], Any]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds of each program in each round; every other round goes backwards."""
    for run in programs.values():
        for _ in range(2):
            jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in programs}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= 5 and time.perf_counter() - started > seconds:
            break
        order = list(programs.items())
        for name, run in order if number % 2 else reversed(order):
            times[name].append(round(1e3 * _seconds(run), 5))
    return times


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


HEADER = ["B x K, dtype", "program", "naive / it", "ms", "floor, ms", "of the floor", "units", "error"]


def _rows(cell: dict[str, Any], bandwidth: float) -> list[list[str]]:
    unit = cell["batch"] * cell["bins"] * jnp.dtype(cell["dtype"]).itemsize
    rows = []
    for program, times in cell["milliseconds"].items():
        kind, name = program.split()
        naive = cell["milliseconds"][f"{kind} naive"]
        ratio = statistics.median(a / b for a, b in zip(naive, times, strict=True))
        taken, floor = statistics.median(times), 1e3 * FLOOR[kind] * unit / bandwidth
        error = cell["errors"][name]["loss" if kind == "forward" else "gradient"]
        moved = taken * bandwidth / unit / 1e3
        rows.append(
            [
                f"{cell['batch']} x {cell['bins']}, {cell['dtype']}",
                program,
                f"{ratio:.2f}",
                f"{taken:.3f}",
                f"{floor:.3f}",
                f"{floor / taken:.0%}",
                f"{moved:.1f}",
                f"{error:.1e}",
            ]
        )
    return rows


LINEAR_HEADER = ["B x D x K, dtype", "program", "it / materialised", "ms", "temporaries, MiB", "error"]


def _linear_rows(cell: dict[str, Any]) -> list[list[str]]:
    rows = []
    for program, times in cell["milliseconds"].items():
        kind, name = program.split()
        whole = cell["milliseconds"].get(f"{kind} materialised")
        ratio = whole and statistics.median(a / b for a, b in zip(times, whole, strict=True))
        rows.append(
            [
                f"{cell['batch']} x {cell['width']} x {cell['bins']}, {cell['dtype']}",
                program,
                f"{ratio:.2f}" if ratio else "",
                f"{statistics.median(times):.3f}",
                f"{cell['temporary_bytes'][program] / 2**20:.1f}",
                f"{cell['errors'][name]['loss' if kind == 'forward' else 'gradient']:.1e}",
            ]
        )
    return rows


def _lines(rows: list[list[str]], cell: dict[str, Any]) -> str:
    refused = [f"  {name}: {reason}" for name, reason in cell["refused"].items()]
    return "\n".join(["  ".join(row) for row in rows] + refused)


def _text(data: dict[str, Any]) -> str:
    bandwidth = data["copy_bytes_per_second"]
    rows = [row for cell in data["cells"] for row in _rows(cell, bandwidth)]
    linear = [row for cell in data["linear"] for row in _linear_rows(cell)]
    refused = {f"* {n}: {why}" for cell in data["cells"] for n, why in cell["refused"].items()}
    refused |= {f"* linear {n}: {why}" for cell in data["linear"] for n, why in cell["refused"].items()}
    return "\n\n".join(
        [
            f"# The fused histogram cross-entropy on {data['machine']['device']}",
            f"{_report.describe(data['machine'])} A copy moves {bandwidth / 1e9:.1f} GB/s.",
            _report.table(HEADER, rows),
            "Medians over rounds, all programs of a cell in turn; `chosen` is what `implementation=None` takes "
            "here; `naive / it` is the median of the ratios within a "
            "round. Units: what that time would move at the bandwidth of the copy, in sizes of the logits; the floor "
            "is 1 forward and 3 for value and gradient, and what fits a cache can be below it. Error: the largest "
            "against float64, of a loss or of a gradient's element.",
            "## From the features of a linear layer on",
            _report.table(LINEAR_HEADER, linear),
            "`materialised` makes the logits with a product and gives them to the loss of the table above. Temporaries "
            "are what the compiler reports. The error of a gradient is a share of its largest element, with all "
            "products in full precision.",
            *(["Not run:\n\n" + "\n".join(sorted(refused))] if refused else []),
        ]
    )


if __name__ == "__main__":
    main()
