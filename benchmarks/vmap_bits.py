"""Checks if a seed learns the same bits alone and beside other seeds, with and without vmap, on MinAtar's Breakout.

    python benchmarks/vmap_bits.py

Seed 7 is trained alone and among others. The table has the largest difference between a parameter of seed 7 in the two
runs, after 2 to 300 updates, and whether all episodes of seed 7 had the same returns. Nothing is timed, so the machine
may be busy.
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
SEED = 7
UPDATES = (2, 10, 100, 300)  # even numbers, because an iteration makes two updates
# Maps (seeds, vmap) to the (seeds, vmap) with which it is compared.
PAIRS = {(3, False): (1, False), (1, True): (1, False), (2, True): (1, True), (3, True): (1, True)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--updates", type=int, nargs="+", default=list(UPDATES))
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts, measured = _report.machine(), []
    for loss in LOSSES:
        seen = {
            each: _train(loss, *each, arguments.updates) for each in dict.fromkeys([*PAIRS.values(), *PAIRS])
        }
        for (lanes, vmap), reference in PAIRS.items():
            for updates, (parameters, returns) in seen[lanes, vmap].items():
                expected, expected_returns = seen[reference][updates]
                line = {
                    "loss": loss,
                    "lanes": lanes,
                    "vmap": vmap,
                    "reference": reference,
                    "updates": updates,
                }
                line["difference"] = float(np.abs(parameters - expected).max())
                line["same_returns"] = returns == expected_returns
                measured.append(line)
                print(json.dumps(line), file=sys.stderr, flush=True)
    _report.write(
        "vmap_bits", {"machine": facts, "measured": measured}, _text(facts, measured), arguments.out
    )


def _train(
    loss: str, lanes: int, vmap: bool, updates: list[int]
) -> dict[int, tuple[np.ndarray, list[float]]]:
    """For each number of updates, the parameters of seed 7 then, and the returns of its episodes so far."""
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
    updates, rows = list(dict.fromkeys(line["updates"] for line in measured)), []
    for loss in LOSSES:
        for (lanes, vmap), reference in PAIRS.items():
            lines = [
                line
                for line in measured
                if (line["loss"], line["lanes"], line["vmap"]) == (loss, lanes, vmap)
            ]
            cells = [f"{line['difference']:.1e}" if line["difference"] else "0" for line in lines]
            same = "yes" if all(line["same_returns"] for line in lines) else "no"
            rows.append([loss, _name(lanes, vmap), _name(*reference), *cells, same])
    header = ["loss", "seed 7", "compared with", *(f"{count:,} updates" for count in updates), "same returns"]
    intro = "The largest difference between two parameters of seed 7."
    return f"# Bits of a seed beside others\n\n{intro} {_report.describe(facts)}\n\n{_report.table(header, rows)}"


def _name(lanes: int, vmap: bool) -> str:
    return ("alone" if lanes == 1 else f"among {lanes}") + (", vmap" if vmap else "")


if __name__ == "__main__":
    main()
