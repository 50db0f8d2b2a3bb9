"""Whether a seed learns the same bits alone and beside other seeds, with and without vmap, on MinAtar's Breakout.

    python benchmarks/vmap_bits.py

Seed 7 is trained alone, and among 2, 3 and 10 seeds. The table has the largest difference between a parameter of seed 7
there and the same parameter of seed 7 alone without vmap, after 2 to 1,000 updates, and whether the episodes that it
played since the start had the same returns. Nothing is timed, so the machine may be busy.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import _report
import compiled
import numpy as np

LOSSES = ("mse", "hlgauss")
SEED, LANES = 7, (1, 2, 3, 10)
UPDATES = (2, 10, 100, 1000)  # two are made in an iteration


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=list(LANES))
    parser.add_argument("--updates", type=int, nargs="+", default=list(UPDATES))
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts, measured = _report.machine(), []
    for loss in LOSSES:
        alone = _train(loss, 1, False, arguments.updates)
        for vmap in (False, True):
            for lanes in arguments.lanes:
                seen = _train(loss, lanes, vmap, arguments.updates)
                for updates, (parameters, returns) in seen.items():
                    expected, expected_returns = alone[updates]
                    line = {"loss": loss, "vmap": vmap, "lanes": lanes, "updates": updates}
                    line["difference"] = float(np.abs(parameters - expected).max())
                    line["same_return"] = returns == expected_returns
                    measured.append(line)
                print(json.dumps(measured[-1]), file=sys.stderr, flush=True)
    _report.write(
        "vmap_bits", {"machine": facts, "measured": measured}, _text(facts, measured), arguments.out
    )


def _train(
    loss: str, lanes: int, vmap: bool, updates: list[int]
) -> dict[int, tuple[np.ndarray, list[float]]]:
    """After each number of updates the parameters of seed 7, and the returns of its episodes so far."""
    import jax

    from rlcls.training import Compiled

    program = compiled.program(loss=loss, vmap=vmap)
    loop = Compiled([program], range(SEED, SEED + lanes), log_every=program.units)
    seen, returns = {}, []
    while loop.counts["updates"] < max(updates):
        ((_, line),) = loop.advance()
        returns.append(line["episode_return"] if lanes == 1 else line["episode_return_each"][0])
        if (count := loop.counts["updates"]) in updates:
            parameters = jax.device_get(jax.tree.leaves(loop.acting()["0"]))
            seen[count] = np.concatenate([leaf.ravel() for leaf in parameters]), list(returns)
    return seen


def _text(facts: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    updates = list(dict.fromkeys(line["updates"] for line in measured))
    rows = []
    for loss, vmap, lanes in dict.fromkeys((line["loss"], line["vmap"], line["lanes"]) for line in measured):
        lines = [
            line for line in measured if (line["loss"], line["vmap"], line["lanes"]) == (loss, vmap, lanes)
        ]
        same = "yes" if all(line["same_return"] for line in lines) else "no"
        cells = [f"{line['difference']:.1e}" if line["difference"] else "0" for line in lines]
        rows.append([loss, "yes" if vmap else "no", str(lanes), *cells, same])
    header = ["loss", "vmap", "seeds", *(f"{count:,} updates" for count in updates), "same returns"]
    intro = "The largest difference between a parameter of seed 7 and that of seed 7 alone without vmap."
    return f"# Bits of a seed beside others\n\n{intro} {_report.describe(facts)}\n\n{_report.table(header, rows)}"


if __name__ == "__main__":
    main()
