"""Counts the histograms of NumPy that differ from those of a compiled program, and times them.

    python benchmarks/encoding.py   # about two minutes

Half of the targets are returns of episodes of many lengths, the others are random numbers. The bins are those of
`heads.recap`. A row differs if one of its bits does.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import _report
import jax
import numpy as np

from rlcls import heads

_ROWS = 4096  # encoded at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--lengths", type=int, default=1000, help="episodes of 1, 2, ... steps up to this many"
    )
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts = _report.machine()
    returns = np.concatenate([-np.arange(length) / length for length in range(1, arguments.lengths + 1)])
    random = np.random.default_rng(0).uniform(-1, 0, len(returns))
    targets = np.concatenate([returns, random]).astype(np.float32)
    cells = []
    for name in ("one_hot", "two_hot", "hlgauss"):
        head = heads.recap(name)
        cells.append({"target": name, "function": "head.encode", **_compare(head.encode, targets)})
        portable = {"target": name, "function": "heads.portable_encode"}
        cells.append(portable | _compare(lambda x, head=head: heads.portable_encode(head, x), targets))
    data = {"machine": facts, "rows": len(targets), "device": jax.devices()[0].device_kind, "cells": cells}
    _report.write("encoding", data, _text(data), arguments.out)


def _compare(encode: Any, targets: np.ndarray) -> dict[str, Any]:
    compiled, seconds = jax.jit(encode), []
    rows, largest = 0, 0.0
    for first in range(0, len(targets), _ROWS):
        part = targets[first : first + _ROWS]
        began = time.process_time()
        ours = encode(part)
        seconds.append((time.process_time() - began) / len(part))
        theirs = np.asarray(compiled(part))
        rows += int((ours.view(np.int32) != theirs.view(np.int32)).any(-1).sum())
        largest = max(largest, float(np.abs(ours - theirs).max()))
    return {"differing": rows, "largest": largest, "microseconds": 1e6 * statistics.median(seconds)}


def _text(data: dict[str, Any]) -> str:
    rows = [
        (
            f"`{cell['function']}`, `{cell['target']}`",
            f"{cell['differing']:,}",
            f"{cell['largest']:.1e}" if cell["largest"] else "0",
            f"{cell['microseconds']:.1f}",
        )
        for cell in data["cells"]
    ]
    header = ("", "rows that differ", "largest difference", "microseconds a row in NumPy")
    return "\n\n".join(
        [
            f"# Histograms of NumPy against those of a compiled program ({data['device']})",
            f"{data['rows']:,} targets in 201 bins; {_report.describe(data['machine'])}",
            _report.table(header, rows),
            f"Microseconds are of the process, a median over batches of {_ROWS:,}.",
        ]
    )


if __name__ == "__main__":
    main()
