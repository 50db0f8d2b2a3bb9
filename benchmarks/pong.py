"""Measures minutes and agent steps to mean evaluation returns of `recipe=fast` on Pong, by loss and seed.

    python benchmarks/pong.py steps=500000 --losses hlgauss mse --seeds 0 1

Runs are made one after another in --runs. The same command skips finished runs and continues interrupted ones. Minutes
count from the first step of a run and include evaluations and checkpoints.

With --one-core as many runs are made at once as there are cores, each on one core (Linux only). Each run is a quarter
slower, but more runs finish in an hour. The bits differ from those of a run on two cores.
"""

import argparse
import csv
import json
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _report

THRESHOLDS = (0, 15, 18)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=["hlgauss", "mse"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--runs", type=Path, default=_report.ROOT / "runs" / "pong")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    parser.add_argument("--report-only", action="store_true", help="of the runs as they are")
    parser.add_argument("--one-core", action="store_true", help="several runs at once, each on one core")
    parser.add_argument("overrides", nargs="*", help="for every run, such as steps=500000; before the flags")
    arguments = parser.parse_args()
    facts = _report.machine()
    # All losses of a seed run before the next seed.
    wanted = [(loss, seed) for seed in arguments.seeds for loss in arguments.losses]
    folders = [arguments.runs / f"{loss}-s{seed}" for loss, seed in wanted]
    cores: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    there = sorted(os.sched_getaffinity(0))
    for core in [[core] for core in there] if arguments.one_core else [there]:
        cores.put(core)

    def train(folder: Path, loss: str, seed: int) -> None:
        mine = cores.get()
        try:
            _train(folder, loss, seed, arguments.overrides, mine)
        finally:
            cores.put(mine)

    if not arguments.report_only:
        with ThreadPoolExecutor(cores.qsize()) as pool:
            list(pool.map(train, folders, *zip(*wanted, strict=True)))
    runs = [
        _read(folder, loss, seed)
        for folder, (loss, seed) in zip(folders, wanted, strict=True)
        if (folder / "metrics.jsonl").exists()
    ]
    if not runs:
        raise SystemExit(f"there is no run in {arguments.runs}")
    how = "Several at once, each on one core." if arguments.one_core else "One after another, on all cores."
    _write(runs, facts | {"how": how}, arguments.overrides, arguments.out)


def _train(folder: Path, loss: str, seed: int, overrides: list[str], cores: list[int]) -> None:
    command = ["agent=dqn", f"loss={loss}", "game=Pong", "recipe=fast", f"seed={seed}", f"run_dir={folder}"]
    command = [sys.executable, "-m", "rlcls.train", *command, *overrides]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if len(cores) == 1 else []
    code = subprocess.run([*pinned, *command], env=_report.environment(), check=False).returncode
    if code:
        raise SystemExit(code)


def _read(folder: Path, loss: str, seed: int) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    reached = {}
    for threshold in THRESHOLDS:
        first = next((line for line in evaluations if line["return_mean"] >= threshold), None)
        reached[threshold] = first and {name: first[name] for name in ("agent_steps", "frames", "seconds")}
    return {
        "loss": loss,
        "seed": seed,
        "reached": reached,
        "evaluations": evaluations,
        "training": [
            {
                name: line.get(name)
                for name in ("agent_steps", "seconds", "episode_return", "steps_per_second")
            }
            for line in lines
            if line["kind"] == "train"
        ],
    }


def _write(runs: list[dict[str, Any]], facts: dict[str, Any], overrides: list[str], out: Path) -> None:
    header = ["loss", "seed", *(f"{threshold}: minutes (agent steps)" for threshold in THRESHOLDS)]
    header += ["best", "last", "in all"]
    rows = [_row(run) for run in runs]
    text = "\n\n".join(
        [
            "# Pong, `recipe=fast`, dopamine protocol: time to a mean evaluation return",
            f"Overrides: {' '.join(overrides) or 'none'}. {facts['how']} {_report.describe(facts)}",
            _report.table(header, rows),
        ]
    )
    _report.write("pong", {"machine": facts, "overrides": overrides, "runs": runs}, text, out)
    with open(out / "pong.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["loss", "seed", "agent_steps", "frames", "seconds", "return_mean", "return_std", "returns"]
        )
        for run in runs:
            for line in run["evaluations"]:
                values = [
                    line[name] for name in ("agent_steps", "frames", "seconds", "return_mean", "return_std")
                ]
                table.writerow(
                    [run["loss"], run["seed"], *values, " ".join(f"{one:g}" for one in line["returns"])]
                )
    _picture(runs, out / "pong.png")


def _row(run: dict[str, Any]) -> list[str]:
    cells = []
    for reached in run["reached"].values():
        cells.append(f"{reached['seconds'] / 60:.1f} ({reached['agent_steps']:,})" if reached else "-")
    means = [line["return_mean"] for line in run["evaluations"]]
    last = max([*run["evaluations"], *run["training"]], key=lambda line: line["agent_steps"], default=None)
    whole = f"{last['seconds'] / 60:.1f} ({last['agent_steps']:,})" if last else "-"
    ends = [f"{max(means):.1f}", f"{means[-1]:.1f}"] if means else ["-", "-"]
    return [run["loss"], str(run["seed"]), *cells, *ends, whole]


def _picture(runs: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    losses = list(dict.fromkeys(run["loss"] for run in runs))
    figure, (by_minutes, by_steps) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axes, field, unit in ((by_minutes, "seconds", 1 / 60), (by_steps, "agent_steps", 1e-3)):
        for run in runs:
            colour = f"C{losses.index(run['loss'])}"
            first = run is next(other for other in runs if other["loss"] == run["loss"])
            x = [line[field] * unit for line in run["evaluations"]]
            y = [line["return_mean"] for line in run["evaluations"]]
            axes.plot(x, y, "o-", color=colour, markersize=3, label=run["loss"] if first else None)
        for threshold in (0, 15):
            axes.axhline(threshold, color="0.8", linewidth=0.8, zorder=0)
        axes.set_ylim(-22, 22)
        axes.spines[["top", "right"]].set_visible(False)
    by_minutes.set_xlabel("minutes")
    by_minutes.set_ylabel("mean evaluation return (each line a seed)")
    by_steps.set_xlabel("thousand agent steps")
    by_minutes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
