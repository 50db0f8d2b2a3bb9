"""How well `env=gymnasium` learns CartPole-v1 with its default recipe: mean evaluation returns by loss and seed.

    python benchmarks/cartpole.py --losses hlgauss mse --seeds 0 1 2 3 4

Runs are made one after another in --runs. Finished runs are not made again and interrupted ones continue, so the
command can be repeated until all runs are finished.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import _report

SCORE = 475  # gymnasium's mark for a solved CartPole-v1


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=["hlgauss", "mse"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=_report.ROOT / "runs" / "cartpole")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    parser.add_argument("overrides", nargs="*", help="for every run, such as steps=20000; before the flags")
    arguments = parser.parse_args()
    facts = _report.machine()
    runs = [
        _train(arguments.runs / f"{loss}-s{seed}", loss, seed, arguments.overrides)
        for seed in arguments.seeds
        for loss in arguments.losses
    ]
    header = [
        "loss",
        "seed",
        f"{SCORE}: seconds (agent steps)",
        "last",
        "seconds in all",
        "return after each evaluation",
    ]
    text = "\n\n".join(
        [
            "# CartPole-v1, `env=gymnasium`: mean return of 20 evaluation episodes",
            f"Overrides: {' '.join(arguments.overrides) or 'none'}. {_report.describe(facts)}",
            _report.table(header, map(_row, runs)),
        ]
    )
    data = {"machine": facts, "overrides": arguments.overrides, "runs": runs}
    _report.write("cartpole", data, text, arguments.out)


def _train(folder: Path, loss: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    options = ["env=gymnasium", f"loss={loss}", f"seed={seed}", f"run_dir={folder}", "eval.episodes=20"]
    command = [sys.executable, "-m", "rlcls.train", *options, "logging.tensorboard=false", *overrides]
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, env=_report.environment(), check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    fields = ("agent_steps", "seconds", "return_mean")
    evaluations = [{name: line[name] for name in fields} for line in lines if line["kind"] == "eval"]
    return {"loss": loss, "seed": seed, "evaluations": evaluations}


def _row(run: dict[str, Any]) -> list[str]:
    lines = run["evaluations"]
    solved = next((line for line in lines if line["return_mean"] >= SCORE), None)
    reached = f"{solved['seconds']:.0f} ({solved['agent_steps']:,})" if solved else "-"
    means = " ".join(f"{line['return_mean']:.0f}" for line in lines)
    last = lines[-1]
    return [
        run["loss"],
        str(run["seed"]),
        reached,
        f"{last['return_mean']:.1f}",
        f"{last['seconds']:.0f}",
        means,
    ]


if __name__ == "__main__":
    main()
