"""Compares the speed that a run predicts with its measured speed: Pong, two networks, one core and all cores.

    python benchmarks/expected_end.py

`warm_up` predicts the speed before the first step. The measurement starts after 20 updates. Neither includes
evaluations and checkpoints, for which the header of a run adds a tenth.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import _report

MARK = "MEASURED "


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of training to time")
    parser.add_argument("--backbones", nargs="+", default=["data_efficient", "nature"])
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    parser.add_argument("--one", metavar="BACKBONE", help=argparse.SUPPRESS)  # measures in this process
    arguments = parser.parse_args()
    if arguments.one:
        _measure(arguments.one, arguments.seconds)
        return
    facts, cores = _report.machine(), sorted(os.sched_getaffinity(0))
    results = []
    for backbone in arguments.backbones:
        for count in sorted({1, len(cores)}):
            pinned = ["taskset", "-c", ",".join(map(str, cores[:count]))]
            command = [
                *pinned,
                sys.executable,
                __file__,
                "--one",
                backbone,
                "--seconds",
                str(arguments.seconds),
            ]
            done = subprocess.run(
                command, env=_report.environment(), check=True, capture_output=True, text=True
            )
            line = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
            results.append({"backbone": backbone, "cores": count, **json.loads(line.removeprefix(MARK))})
    rows = [
        [
            result["backbone"],
            result["cores"],
            f"{1e3 * result['predicted']:.3f}",
            f"{1e3 * result['measured']:.3f}",
            f"{100 * (result['predicted'] / result['measured'] - 1):+.0f} %",
            f"{result['warm_up']:.1f}",
        ]
        for result in results
    ]
    header = ["network", "cores", "predicted, ms", "measured, ms", "prediction too long by", "warm-up, s"]
    text = "\n\n".join(
        [
            "# The expected pace of `recipe=fast` on Pong, milliseconds for one agent step",
            f"Measured over {arguments.seconds:g} s. {_report.describe(facts)}",
            _report.table(header, rows),
        ]
    )
    _report.write("expected_end", {"machine": facts, "results": results}, text, arguments.out)


def _measure(backbone: str, seconds: float) -> None:
    """Prints the predicted and the measured seconds for one agent step."""
    from rlcls.cli import build
    from rlcls.cli.compose import compose
    from rlcls.training import memory, xla

    config = compose(["game=Pong", f"backbone={backbone}"])
    xla.choose_device("cpu")
    xla.cache_compilations()
    memory.reuse_freed_memory()
    env = build.environment(config)
    loop = build.loop(config, build.agent(config, env.spec), env)
    begun = time.perf_counter()
    predicted = loop.warm_up(config.steps)
    warm_up = time.perf_counter() - begun
    while loop.counts["updates"] < 20:
        loop.advance()
    first, begun = loop.counts["agent_steps"], time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        loop.advance()
    measured = elapsed / (loop.counts["agent_steps"] - first)
    loop.close()
    print(MARK + json.dumps({"predicted": predicted, "measured": measured, "warm_up": warm_up}))


if __name__ == "__main__":
    main()
