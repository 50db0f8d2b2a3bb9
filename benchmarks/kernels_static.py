"""Counts memory traffic and instructions of the fused cross-entropy, compiled for a TPU v5e and an H100.

    python -m pip install -r tests/kernels/aot/requirements.txt
    python benchmarks/kernels_static.py

Neither chip is needed, and nothing is timed. Memory is the traffic of the loss and its gradient in the chip's main
memory, as a multiple of the logits' bytes, and the temporary memory besides arguments and results. Arithmetic is the
number of instruction bundles of the TPU's kernels per 1,024 logits, beside the cycles in which the memory delivers
1,024 logits, and the number of registers of the GPU's kernels.
"""

import argparse
import dataclasses
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _categorical
import _chips
import _report
import jax
import jax.numpy as jnp
from _traffic import moved_bytes

from rlcls import kernels
from rlcls.kernels.histogram import mosaic_tpu, tpu

SHAPES = ((4096, 1024), (4096, 8192), (1024, 131_072))  # rows, bins
DTYPES = ("float32", "bfloat16")
PALLAS = {"v5e": "mosaic_tpu", "H100": "mosaic_gpu"}
# A v5e has 819 GB/s. Its clock is that at which 4 units of 128 x 128 multiply-adds make 197 TFLOP/s.
_BYTES_PER_CYCLE = 819e9 / (197e12 / (4 * 128 * 128 * 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    parser.add_argument("--only-compile", nargs=2, metavar=("CHIP", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_compile:
        _compile_pallas(*arguments.only_compile)
        return
    for chip in PALLAS:
        if reason := _chips.missing(chip):
            sys.exit(f"cannot compile for {chip}: {reason}; see tests/kernels/aot/requirements.txt")
    facts = _report.machine()
    # Separate processes compile, before this one loads a compiler.
    bundles = [_bundles(width, dtype) for width in CASES for dtype in DTYPES]
    registers = [_registers(width, dtype) for width in CASES for dtype in DTYPES]
    traffic = [
        _traffic(chip, name, batch, bins, dtype)
        for chip in PALLAS
        for batch, bins in SHAPES
        for dtype in DTYPES
        for name in ("reference", "xla", PALLAS[chip])
    ]
    data = {
        "machine": facts,
        "compilers": {name: _report.version(name) for name in ("libtpu", "jax-cuda12-plugin")},
        "traffic": traffic,
        "categorical": _categorical.traffic(),
        "bundles": bundles,
        "registers": registers,
    }
    _report.write("kernels_static", data, _text(data), arguments.out)


def value_and_gradient(projection: Any, name: str) -> Any:
    def mean(logits, targets):
        return kernels.histogram_cross_entropy(logits, targets, projection, implementation=name).mean()

    return jax.value_and_grad(mean)


def shapes(batch: int, bins: int, dtype: str) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    return jax.ShapeDtypeStruct((batch, bins), jnp.dtype(dtype)), jax.ShapeDtypeStruct((batch,), jnp.float32)


def gaussian(bins: int, deviations: float) -> kernels.Gaussian:
    """A projection with edges that are not round numbers, and a sigma of `deviations` bins."""
    return kernels.Gaussian(-10.7, 9.3, bins, deviations * 20 / bins)


CASES = {
    "narrow": gaussian(8192, 0.75),
    "wide": gaussian(8192, 50.0),
    "two-hot": kernels.TwoHot(-10.0, 10.0, 8192),
}


def _traffic(chip: str, name: str, batch: int, bins: int, dtype: str) -> dict[str, Any]:
    run = value_and_gradient(gaussian(bins, 0.75), name)
    compiled = _chips.compile_for(chip, run, *shapes(batch, bins, dtype))
    logits = batch * bins * jnp.dtype(dtype).itemsize
    return {
        "chip": chip,
        "implementation": name,
        "batch": batch,
        "bins": bins,
        "dtype": dtype,
        "units": round(moved_bytes(compiled.as_text()) / logits, 2),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def _compile_pallas(chip: str, case: str) -> None:
    width, dtype = case.split("/")
    _chips.compile_for(chip, value_and_gradient(CASES[width], PALLAS[chip]), *shapes(1024, 8192, dtype))


def _dump(chip: str, width: str, dtype: str, variables: dict[str, str], pattern: str) -> dict[str, str]:
    """The text that the compiler writes about the forward and the backward kernel."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = _report.environment(**{k: v.format(folder) for k, v in variables.items()})
        command = [sys.executable, __file__, "--only-compile", chip, f"{width}/{dtype}"]
        subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
        for direction in ("forward", "backward"):
            paths = Path(folder).glob(pattern.format(f"histogram_cross_entropy_{direction}"))
            (path,) = [path for path in paths if "schedule-analysis" not in path.name]
            found[direction] = path.read_text()
    return found


def _bundles(width: str, dtype: str) -> dict[str, Any]:
    """Bundles per 1,024 logits in the loops of the kernels, without waits for memory."""
    variables = {"LIBTPU_INIT_ARGS": "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true"}
    dumped = _dump("v5e", width, dtype, variables, "*{}*final_bundles.txt")
    group = tpu.ROWS * tpu.LANES / 1024
    unrolled = tpu.UNROLL * group  # thousands of logits in a turn of an innermost loop
    (forward,) = [loop for loop in loops(dumped["forward"]) if loop.depth == 2]
    (backward,) = [loop for loop in loops(dumped["backward"]) if loop.depth == 2]
    (inner,) = [loop for loop in loops(dumped["backward"]) if loop.depth == 3]
    # For a wide band, the second conditional region computes the masses.
    first, second = forward.skips if width == "wide" else (forward.end, forward.end)
    per_block = group * mosaic_tpu._BLOCKS["backward"][1] / tpu.LANES
    return {
        "band": width,
        "dtype": dtype,
        "forward": round((first - forward.start) / unrolled, 2),
        "forward_in_band": round((second - forward.start) / unrolled, 2),
        "backward": round(inner.length / unrolled + (backward.length - inner.length) / per_block, 2),
        "memory_cycles": round(1024 * jnp.dtype(dtype).itemsize / _BYTES_PER_CYCLE, 2),
    }


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a TPU program: the addresses of its bundles and of the ends of its conditional regions."""

    depth: int
    start: int
    end: int
    skips: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.end - self.start


def loops(program: str) -> list[Loop]:
    """The loops of a schedule, whose lines read `0x4b LB: >> { ... }`: address, mark, depth, instructions."""
    lines = re.findall(r"^ *(?:0x)?([0-9a-f]+) +([A-Z]{2})? *: (>*) *\{", program, re.MULTILINE)
    bundles = [(int(address, 16), mark, len(depth)) for address, mark, depth in lines]
    found = []
    for index, (start, mark, depth) in enumerate(bundles):
        if mark != "LB":
            continue
        # Branching bundles have no depth.
        after = (address for address, _, other in bundles[index:] if 0 < other < depth)
        end = next(after, bundles[-1][0])
        skips = [a for a, mark, other in bundles[index:] if a < end and mark == "PF" and other == depth]
        found.append(Loop(depth, start, end, tuple(skips)))
    return found


def _registers(width: str, dtype: str) -> dict[str, Any]:
    dumped = _dump("H100", width, dtype, {"MOSAIC_GPU_DUMP_TO": "{}"}, "{}_*.ptxas")
    result: dict[str, Any] = {"band": width, "dtype": dtype}
    for direction, report in dumped.items():
        result[direction] = int(re.findall(r"Used (\d+) registers", report)[0])
        result[f"{direction}_spilled_bytes"] = sum(map(int, re.findall(r"(\d+) bytes spill", report)))
    return result


def _text(data: dict[str, Any]) -> str:
    compilers = ", ".join(f"{name} {version}" for name, version in data["compilers"].items())
    blocks = [
        "# The fused cross-entropy, compiled",
        "`python benchmarks/kernels_static.py`: read from compiled programs. Nothing here is a time, and neither a TPU "
        f"nor a GPU has run these kernels yet. {_report.describe(data['machine'])} Compilers: {compilers}.",
        "## Memory traffic of loss and gradient, in units of the logits' bytes",
        "The least is 3: the logits twice, the gradient once. In brackets, temporary memory in MiB. `reference` is "
        "plain JAX, differentiated by JAX. Buffers that XLA keeps on the chip (v5e: up to 128 MiB) count as nothing.",
    ]
    for chip, pallas in PALLAS.items():
        names = ("reference", "xla", pallas)
        rows = []
        for batch, bins in SHAPES:
            for dtype in DTYPES:
                cells = [_cell(data["traffic"], chip, name, batch, bins, dtype) for name in names]
                rows.append((f"{batch} x {bins} {dtype}", *cells))
        blocks.append(_report.table((chip, *(f"`{name}`" for name in names)), rows))
    blocks += _categorical.text(data["categorical"])
    blocks += [
        "## Bundles per 1,024 logits, TPU v5e",
        "A bundle is issued in a cycle; the last column has the cycles in which 819 GB/s deliver 1,024 logits at 1.5 "
        "GHz (backward moves twice that). Bands: Gaussians of 0.75 and of 50 bins' standard deviation, and two-hot.",
        _report.table(
            ("band", "forward", "where the band is", "backward", "memory, once"),
            [
                (
                    f"{row['band']} {row['dtype']}",
                    *(row[k] for k in ("forward", "forward_in_band", "backward", "memory_cycles")),
                )
                for row in data["bundles"]
            ],
        ),
        "## Registers of a thread, H100 (sm_90a)",
        _report.table(
            ("band", "forward", "backward", "bytes spilled"),
            [
                (
                    f"{row['band']} {row['dtype']}",
                    row["forward"],
                    row["backward"],
                    row["forward_spilled_bytes"] + row["backward_spilled_bytes"],
                )
                for row in data["registers"]
            ],
        ),
    ]
    return "\n\n".join(blocks)


def _cell(rows: list[dict[str, Any]], *key: Any) -> str:
    names = ("chip", "implementation", "batch", "bins", "dtype")
    (row,) = [row for row in rows if tuple(row[name] for name in names) == key]
    return f"{row['units']:.2f} ({row['temporary_bytes'] / 2**20:.1f})"


if __name__ == "__main__":
    main()
