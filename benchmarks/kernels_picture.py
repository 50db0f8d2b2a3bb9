"""Draws the roofline of the fused cross-entropy: docs/kernels/roofline.png.

    python benchmarks/kernels_picture.py                                          # only the floors
    python benchmarks/kernels_picture.py benchmarks/results/kernels_gpu.json ...  # with the times of `kernels.py`

A line is the minimum time of value and gradient: three times the size of the logits divided by the bandwidth. Two lines
have published bandwidths (H100 SXM: 3.35 TB/s; TPU v5e: 819 GB/s), the others those of measured copies.
"""

import argparse
import json
import statistics
from pathlib import Path

import _report
import matplotlib.pyplot as plt
import numpy as np

PUBLISHED = {"H100, 3.35 TB/s": 3.35e12, "TPU v5e, 819 GB/s": 8.19e11}
MARKERS = {"naive": "o", "xla": "s", "cpu": "^", "mosaic_tpu": "D", "mosaic_gpu": "D", "optax": "x"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, default=_report.ROOT / "docs" / "kernels" / "roofline.png")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    sizes = np.geomspace(1e5, 1e9, 50)
    for (label, bandwidth), style in zip(PUBLISHED.items(), ("-", "--"), strict=True):
        axes.loglog(sizes / 1e6, 3e3 * sizes / bandwidth, style, color="black", lw=1, label=f"floor, {label}")
    for number, path in enumerate(arguments.results):
        _measured(axes, json.loads(path.read_text()), f"C{number}", sizes)
    axes.set_xlabel("size of the logits, MB")
    axes.set_ylabel("value and gradient, ms")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)
    print(arguments.out)


def _measured(axes: plt.Axes, data: dict, color: str, sizes: np.ndarray) -> None:
    """Draws the floor by the machine's measured copy, and the medians of each program."""
    device, bandwidth = data["machine"]["device"], data["copy_bytes_per_second"]
    label = f"floor, {device}, copy at {bandwidth / 1e9:.0f} GB/s"
    axes.loglog(sizes / 1e6, 3e3 * sizes / bandwidth, ":", color=color, lw=1, label=label)
    for name, marker in MARKERS.items():
        points = []
        for cell in data["cells"]:
            times = cell["milliseconds"].get(f"gradient {name}")
            if times:
                itemsize = {"float32": 4, "bfloat16": 2}[cell["dtype"]]
                points.append((cell["batch"] * cell["bins"] * itemsize / 1e6, statistics.median(times)))
        if points:
            x, y = zip(*sorted(points), strict=True)
            axes.loglog(x, y, marker, color=color, ms=5, mfc="none", label=f"{name}, {device}")


if __name__ == "__main__":
    main()
