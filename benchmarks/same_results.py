"""Checks that a change of the code leaves the results of training as they were.

    python benchmarks/same_results.py --before HEAD~1             # this checkout against a git revision
    python benchmarks/same_results.py --record before.json        # or record now ...
    python benchmarks/same_results.py --against before.json       # ... and compare later

It runs five short commands: Pong with recipe=fast and recipe=paper, Pong killed and resumed, a probe MDP, and Pong with
a SoftMoE. Two revisions agree if every line of `metrics.jsonl` (without times) and every parameter are equal. The bits
depend on the machine, so both revisions must run on the same one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLOCK_FIELDS = ("seconds", "steps_per_second", "frames_per_second")

_EVERY = ["eval.every=2000", "eval.episodes=2", "checkpoint.every=2000", "logging.every=500"]
_PONG = ["game=Pong", "recipe=fast", "steps=12000", "diagnostics.every=400", *_EVERY, "eval.every=6000"]
_PAPER = ["game=Pong", "recipe=paper", "steps=2000", "training.lag=0", "replay.capacity=1500", *_EVERY]
_PROBE = ["env=probe", "game=probe/policy", "backbone=mlp", "steps=6000", "replay.min_size=500", *_EVERY]
_SOFT_MOE = [
    "game=Pong",
    "backbone=soft_moe",
    "steps=1000",
    "replay.min_size=400",
    "training.batch_size=8",
    *_EVERY,
]
COMMANDS = {
    "pong_fast": _PONG,
    "pong_fast_killed": _PONG,
    "pong_paper": [*_PAPER, "replay.min_size=500", "diagnostics.every=100"],
    "probe": [*_PROBE, "diagnostics.every=200"],
    "soft_moe": [*_SOFT_MOE, "eval.episodes=1", "diagnostics.every=50", "diagnostics.batch_size=32"],
}


def record(checkout: Path, names: Sequence[str]) -> dict[str, Any]:
    """Runs the commands called `names` with the code of `checkout`.

    Returns:
      For each command the lines of its metrics and the SHA-256 of its final parameters.
    """
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            begun, run_dir = time.monotonic(), Path(folder, name)
            _train(checkout, [*COMMANDS[name], f"run_dir={run_dir}"], killed=name.endswith("_killed"))
            results[name] = {"metrics": list(_lines(run_dir)), "parameters": _checksum(run_dir)}
            print(f"{name}: {time.monotonic() - begun:.0f} s, {results[name]['parameters'][:12]}", flush=True)
    return results


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line for each command whose results differ: the first line of metrics that does, or the parameters."""
    lines = []
    for name in after:
        old, new = before[name], after[name]
        pairs = list(zip(old["metrics"], new["metrics"], strict=False))
        unequal = [i for i, (a, b) in enumerate(pairs) if a != b]
        if unequal:
            a, b = pairs[unequal[0]]
            fields = [field for field in a.keys() | b.keys() if a.get(field) != b.get(field)]
            values = ", ".join(f"{field} {a.get(field)} -> {b.get(field)}" for field in sorted(fields))
            lines.append(f"{name}: line {unequal[0] + 1} of {len(pairs)}: {values}")
        elif len(old["metrics"]) != len(new["metrics"]):
            lines.append(f"{name}: {len(old['metrics'])} lines before and {len(new['metrics'])} after")
        elif old["parameters"] != new["parameters"]:
            lines.append(f"{name}: equal metrics, other parameters")
    return lines


def _train(checkout: Path, overrides: list[str], killed: bool) -> None:
    command = [sys.executable, "-m", "rlcls.train", *overrides]
    # The working directory is empty, because the checkout that contains this file would come first in the path.
    with tempfile.TemporaryDirectory() as elsewhere:
        options: dict[str, Any] = {
            "cwd": elsewhere,
            "env": os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"},
            "stdout": subprocess.DEVNULL,
        }
        run_dir = Path(overrides[-1].removeprefix("run_dir="))
        for wanted in (1, 2) if killed else ():
            process = subprocess.Popen(command, **options)
            while process.poll() is None and len(list(run_dir.glob("checkpoints/[0-9]*"))) < wanted:
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, check=True, **options)


def _lines(run_dir: Path) -> Iterator[dict[str, Any]]:
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        yield {name: value for name, value in json.loads(line).items() if name not in CLOCK_FIELDS}


def _checksum(run_dir: Path) -> str:
    """SHA-256 of the online and the target parameters in the newest checkpoint."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    newest = max((run_dir / "checkpoints").glob("[0-9]*"))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        state = checkpointer.restore(newest.resolve() / "tree")["state"]
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves([state["params"], state["target_params"]]):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def main() -> int:
    """The command. Returns 1 if results differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--before", metavar="REVISION", help="compare with a git revision")
    group.add_argument("--record", type=Path, metavar="FILE", help="write the results of this checkout")
    group.add_argument("--against", type=Path, metavar="FILE", help="compare with recorded results")
    parser.add_argument(
        "--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="run only these commands"
    )
    options = parser.parse_args()
    if options.record:
        options.record.write_text(json.dumps(record(ROOT, options.only)))
        return 0
    if options.against:
        before = json.loads(options.against.read_text())
    else:
        with tempfile.TemporaryDirectory() as folder:
            worktree = Path(folder, "before")
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--detach", "-q", str(worktree), options.before], check=True)
            try:
                before = record(worktree, options.only)
            finally:
                subprocess.run([*git, "remove", "--force", str(worktree)], check=True)
    lines = differences(before, record(ROOT, options.only))
    print("\n".join(lines) or "equal: every line of metrics and every parameter")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
