"""Measures the share of the variance of held-out returns that a value in 201 bins explains, by target and failure.

    python benchmarks/value_functions.py   # about ten minutes on one core

`shown` is the data of examples/nnx_steps_to_success.py, where the motion shows failures. In `unannounced` the
expert errs at random, and an opened gripper ends an episode at once. Each seed has its own initial network and batches.
The recordings and the held-out episodes are the same for all seeds.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import _report
import numpy as np

sys.path.insert(0, str(_report.ROOT / "examples"))

import nnx_steps_to_success as example

from rlcls import collect, heads

CELLS = (("shown", "one_hot"), ("shown", "two_hot"), ("shown", "hlgauss"), ("unannounced", "one_hot"))
UNANNOUNCED = ["env=pick", "policy=scripted", "noise=closed_loop", "levels=0,0.05,0.1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=3_000)
    parser.add_argument("--updates", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts, cells = _report.machine(), []
    with tempfile.TemporaryDirectory() as folder:
        unannounced = Path(folder) / "unannounced"
        if collect.main([*UNANNOUNCED, f"episodes={arguments.episodes}", f"out={unannounced}"]):
            raise SystemExit("the episodes cannot be recorded")
        data = {
            "shown": example.read(example.record(Path(folder), arguments.episodes)),
            "unannounced": example.read([unannounced]),
        }
        for kind, target in CELLS:
            runs = [_fit(data[kind], target, arguments.updates, seed) for seed in range(arguments.seeds)]
            cells.append({"data": kind, "target": target, "runs": runs})
    results = {"machine": facts, **vars(arguments), "out": None, "cells": cells}
    _report.write("value_functions", results, _text(results), arguments.out)


def _fit(steps: example.Steps, target: str, updates: int, seed: int) -> dict[str, Any]:
    head, held_out = heads.recap(target), steps.episode % 5 == 0
    learnt, scored = (example.Steps(*(column[rows] for column in steps)) for rows in (~held_out, held_out))
    network = example.fit(head, learnt, updates, seed)
    return {"seed": seed, "steps": int(np.sum(held_out)), **example.measure(head, network, scored)}


def _text(results: dict[str, Any]) -> str:
    names = ("explained_variance", "cross_entropy", "marginal_cross_entropy", "crps")
    rows = [
        [
            f"{cell['data']}, `{cell['target']}`",
            *(f"{statistics.mean(run[name] for run in cell['runs']):.4f}" for name in names),
            " ".join(f"{run['explained_variance']:.4f}" for run in cell["runs"]),
        ]
        for cell in results["cells"]
    ]
    header = ["data, target", *(name.replace("_", " ") for name in names), "explained variance of each seed"]
    intro = (
        f"Means over {results['seeds']} seeds, {results['updates']:,} updates, steps of episodes held out. "
        f"{_report.describe(results['machine'])}"
    )
    return f"# Values of recorded episodes in 201 bins\n\n{intro}\n\n{_report.table(header, rows)}"


if __name__ == "__main__":
    main()
