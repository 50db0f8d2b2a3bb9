"""The Q-Transformer on the pick and relay tasks: which loss, bound, conservatism and data it needs.

    python benchmarks/qtransformer.py pick --jobs 2
    python benchmarks/qtransformer.py all --jobs 2 --minutes 60
    python benchmarks/qtransformer.py report

pick        five agents on the same recordings of about half success
relay       Q-learning beside cloning where no demonstration is clean
tuning      the weight of unseen values for each loss, Monte-Carlo bound and n, on a seed of its own
comparison  each of these at its best weight of `tuning` (WEIGHTS below)
shapes      8 % demonstrations and 92 % noisy replays, as published: conservatism, bound and n-step taken away
bins        256 bins, and 16 bins at two levels, beside 11
history     the fingers hidden, with and without the last three observations
metaworld   three tasks of Meta-World, and all three in one network, 100 fresh goals (needs the extra robotics)
pictures    one of these tasks from pictures, 500 episodes, one seed

Each cell is trained on recordings of its own seed by a command of rlcls.train, with 3,000 updates unless its label says
otherwise. Its final network plays 500 fresh episodes, or 100 of Meta-World. --minutes stops the runs after that time,
and they save: the same command goes on. Runs that have ended are not made again, nor are those whose results lie in
--out.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import _report
import _runs
import numpy as np

STEPS, EPISODES = 3000, 500
HLGAUSS, MSE = ["loss=hlgauss"], ["loss=mse", "agent.alpha=0.1"]
NO_BOUND = "agent.monte_carlo=false"
CLONE, FILTERED = ["agent=qtransformer_bc"], ["agent=qtransformer_bc", "data.successes_only=true"]
MIXED = ["env=pick", "noise=mixed", "levels=0.05,0.1,0.15,0.2,0.3"]
# The options of rlcls.collect for each kind of data. Level 0 of "replay" is a demonstration: 2 of 25 episodes are.
DATA = {
    "mixed": MIXED,
    "hidden": [*MIXED, "env.hidden=true"],
    "hidden, history": [*MIXED, "env.hidden=true", "env.history=3"],
    "relay": ["env=pick", "task=relay"],
    "published": ["env=pick", "noise=replay", f"levels=0,0,{','.join(['0.2'] * 23)}"],
}
TASKS = ("metaworld/pick-place-v3", "metaworld/push-v3", "metaworld/drawer-open-v3")
DATA |= {task: ["env=metaworld", f"task={Path(task).name}", "noise=closed_loop"] for task in TASKS}
DATA["pictures"] = [*DATA[TASKS[0]], "env.image_size=84", "episodes=500"]
# Options of the environment, which training repeats.
ENVIRONMENT = ("env=", "env.", "task=")
LOSSES, WEIGHTS_TRIED = ("mse", "two_hot", "hlgauss"), (0.03, 0.1, 0.3, 1.0)
# The best weights of `tuning`, by loss, bound and n.
WEIGHTS: dict[tuple[str, bool, int], float] = {
    ("mse", True, 1): 0.1,
    ("mse", True, 3): 0.1,
    ("mse", False, 1): 0.1,
    ("mse", False, 3): 0.03,
    ("two_hot", True, 1): 1.0,
    ("two_hot", True, 3): 0.3,
    ("two_hot", False, 1): 0.1,
    ("two_hot", False, 3): 0.3,
    ("hlgauss", True, 1): 0.03,
    ("hlgauss", True, 3): 1.0,
    ("hlgauss", False, 1): 0.1,
    ("hlgauss", False, 3): 0.3,
}
TUNING_SEED = 100


class Cell(NamedTuple):
    """One setting of a part.

    Attributes:
      part: the part of the benchmark that trains it.
      label: names it in tables.
      data: a key of `DATA`, or "tasks", the recordings of all `TASKS`.
      options: what rlcls.train is given.
      seeds: its own seeds; empty takes those of the command.
      steps: updates.
    """

    part: str
    label: str
    data: str
    options: list[str]
    seeds: tuple[int, ...] = ()
    steps: int = STEPS


def cells() -> list[Cell]:
    """Every setting, by part."""
    made = [
        Cell("pick", "HL-Gauss", "mixed", HLGAUSS),
        Cell("pick", "HL-Gauss, 9,000 updates", "mixed", HLGAUSS, steps=9000),
        Cell("pick", "MSE", "mixed", MSE),
        Cell("pick", "MSE, weight of HL-Gauss", "mixed", ["loss=mse"]),
        Cell("pick", "cloning", "mixed", CLONE),
        Cell("pick", "filtered cloning", "mixed", FILTERED),
        Cell("relay", "HL-Gauss", "relay", ["loss=hlgauss", "agent.alpha=0.1"]),
        Cell("relay", "HL-Gauss, no bound", "relay", ["loss=hlgauss", "agent.alpha=0.1", NO_BOUND]),
        Cell("relay", "MSE", "relay", ["loss=mse", "agent.alpha=0.1"]),
        Cell("relay", "MSE, no bound", "relay", ["loss=mse", "agent.alpha=0.1", NO_BOUND]),
        Cell("relay", "cloning", "relay", CLONE),
        Cell("relay", "filtered cloning", "relay", FILTERED),
    ]
    for loss in LOSSES:
        for bound in (True, False):
            for n in (1, 3):
                setting = [
                    f"loss={loss}",
                    f"agent.monte_carlo={str(bound).lower()}",
                    f"data.n_step={n}",
                ]
                name = f"{loss}, {'bound' if bound else 'no bound'}, n={n}"
                made += [
                    Cell(
                        "tuning",
                        f"{name}, weight {w:g}",
                        "mixed",
                        [*setting, f"agent.alpha={w:g}"],
                        (TUNING_SEED,),
                    )
                    for w in WEIGHTS_TRIED
                ]
                if weight := WEIGHTS.get((loss, bound, n)):
                    made.append(Cell("comparison", name, "mixed", [*setting, f"agent.alpha={weight:g}"]))
    made += [
        Cell("shapes", "HL-Gauss", "published", HLGAUSS),
        Cell("shapes", "n=1", "published", [*HLGAUSS, "data.n_step=1"]),
        Cell("shapes", "softmax-CQL", "published", [*HLGAUSS, "agent.conservatism=softmax"]),
        Cell("shapes", "no conservatism", "published", [*HLGAUSS, "agent.alpha=0"]),
        Cell("shapes", "no Monte-Carlo bound", "published", [*HLGAUSS, NO_BOUND]),
        Cell("shapes", "cloning", "published", CLONE),
        Cell("shapes", "filtered cloning", "published", FILTERED),
        Cell("bins", "11 bins", "mixed", HLGAUSS),
        Cell("bins", "256 bins", "mixed", [*HLGAUSS, "agent.bins=256"]),
        Cell("bins", "16 bins, 2 levels", "mixed", [*HLGAUSS, "agent.bins=16", "agent.levels=2"]),
        Cell("history", "hidden", "hidden", MSE),
        Cell("history", "hidden, history 3", "hidden, history", MSE),
    ]
    agents = {"MSE": MSE, "HL-Gauss": HLGAUSS, "cloning": CLONE, "filtered cloning": FILTERED}
    for data, (label, options) in itertools.product((*TASKS, "tasks"), agents.items()):
        name, options = Path(data).name, [*options, "eval.episodes=100"]
        if data == "tasks":
            name, games = "all in one network", f"data.games=[{','.join(TASKS)}]"
            options += [f"agent.games={len(TASKS)}", games]
        made.append(Cell("metaworld", f"{name}, {label}", data, options, (0, 1, 2)))
    pictures = [*MSE, "backbone=impala", "training.batch_size=32", "eval.episodes=100"]
    made.append(Cell("pictures", "MSE", "pictures", pictures, (0,)))
    return made


PARTS = tuple(dict.fromkeys([cell.part for cell in cells()] + ["comparison"]))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all", "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command goes on")
    parser.add_argument("--runs", type=Path, default=_report.ROOT / "runs" / "qtransformer")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    if arguments.part == "comparison" and not WEIGHTS:
        raise SystemExit("WEIGHTS is empty: run tuning, and write down the best weight of each setting")
    wanted = [cell for cell in cells() if arguments.part in (cell.part, "all")]
    known = _known(arguments.out / "qtransformer.json")
    end = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    for seed in dict.fromkeys([*arguments.seeds, TUNING_SEED]):
        chosen = [
            cell
            for cell in wanted
            if seed in (cell.seeds or arguments.seeds) and (cell.part, cell.label, seed) not in known
        ]
        recordings = dict.fromkeys(data for cell in chosen for data in _recorded(cell))
        jobs = [_record(data, seed, arguments.runs) for data in recordings]
        trainings = [_train(cell, seed, arguments.runs) for cell in chosen]
        for each in (jobs, trainings):
            minutes = None if end is None else max(0.0, end - time.monotonic()) / 60
            if not _runs.make(each, arguments.runs, processes=arguments.jobs, minutes=minutes):
                break
        else:
            continue
        break
    _write(cells(), known, arguments.runs, arguments.out)


def _known(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The runs that `_write` wrote before, on whatever machine, by part, label and seed."""
    settings = {(cell.part, cell.label): [cell.data, cell.options, cell.steps] for cell in cells()}
    results = json.loads(path.read_text())["cells"] if path.exists() else []
    return {
        (each["part"], each["label"], run["seed"]): run
        for each in results
        if settings.get((each["part"], each["label"])) == [each["data"], each["options"], each["steps"]]
        for run in each["runs"]
    }


def _recorded(cell: Cell) -> list[str]:
    """The keys of `DATA` that a cell reads."""
    return list(TASKS) if cell.data == "tasks" else [cell.data]


def _path(data: str, seed: int, folder: Path) -> Path:
    return folder / "recordings" / f"s{seed}" / data.replace(", ", "-")


def _record(data: str, seed: int, folder: Path) -> _runs.Job:
    # The data may have a number of episodes of their own.
    options = {option.partition("=")[0]: option for option in ["episodes=2000", *DATA[data]]}
    command = ["-m", "rlcls.collect", "policy=scripted", *options.values(), f"seed={seed}"]
    name = f"record-{data.replace(', ', '-').replace('/', '-')}-s{seed}"
    return _runs.Job(name, [*command, f"out={_path(data, seed, folder)}"])


def _train(cell: Cell, seed: int, folder: Path) -> _runs.Job:
    name = _run_name(cell, seed)
    environment = [option for option in DATA[_recorded(cell)[0]] if option.startswith(ENVIRONMENT)]
    command = ["-m", "rlcls.train", *environment, "agent=qtransformer", "data=recording"]
    if any(option.startswith("agent=") for option in cell.options):
        command.remove("agent=qtransformer")
    path = _path("" if cell.data == "tasks" else cell.data, seed, folder)
    command += [f"data.path={path}", *cell.options]
    command += [f"steps={cell.steps}", f"eval.every={cell.steps // 3}", f"seed={seed}"]
    if not any(option.startswith("eval.episodes=") for option in cell.options):
        command.append(f"eval.episodes={EPISODES}")
    return _runs.Job(name, [*command, "logging.tensorboard=false", f"run_dir={folder / name}"])


def _run_name(cell: Cell, seed: int) -> str:
    return f"{cell.part}-{_name(cell.label)}-s{seed}"


def _name(label: str) -> str:
    return label.replace(", ", "-").replace(" ", "_").replace("=", "").replace(",", "")


def _ended(cell: Cell, folder: Path) -> list[dict[str, Any]]:
    """The ended runs of a cell in the folder."""
    seeds = [
        int(path.stem.rpartition("-s")[2]) for path in folder.glob(f"{cell.part}-{_name(cell.label)}-s*.done")
    ]
    runs = [_evaluations(cell, seed, folder) for seed in seeds]
    return [run for run in runs if run is not None]


def _evaluations(cell: Cell, seed: int, folder: Path) -> dict[str, Any] | None:
    """Success of the data and at each evaluation, and seconds of training; None where the run has not ended.

    With several tasks, success is their mean, and `each` has the final success of each task.
    """
    path = folder / _run_name(cell, seed) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found, facts = [line for line in lines if line["kind"].startswith("eval")], _report.machine()
    last = [line for line in found if line["updates"] == cell.steps]
    if len(last) != len(_recorded(cell)):
        return None
    success: dict[str, list[float]] = {}
    for line in found:
        success.setdefault(str(line["updates"]), []).append(line["return_mean"])
    return {
        "seed": seed,
        "behaviour": float(np.mean([_behaviour(data, seed, folder) for data in _recorded(cell)])),
        "success": {updates: float(np.mean(means)) for updates, means in success.items()},
        "each": {line["kind"].removeprefix("eval."): line["return_mean"] for line in last},
        "seconds": last[-1]["seconds"],
        "length": last[-1]["length_mean"],
        **{name: facts[name] for name in ("cpu", "revision")},
    }


def _behaviour(data: str, seed: int, folder: Path) -> float:
    from rlcls.datasets import open_recording

    (mean,) = open_recording(_path(data, seed, folder)).behaviour_returns.values()
    return mean


def _write(
    settings: list[Cell], known: dict[tuple[str, str, int], dict[str, Any]], folder: Path, out: Path
) -> None:
    facts, texts, results = _report.machine(), [], []
    for part in PARTS:
        rows = []
        for cell in (cell for cell in settings if cell.part == part):
            here = {run["seed"]: run for run in _ended(cell, folder)}
            before = {seed: run for (*name, seed), run in known.items() if name == [cell.part, cell.label]}
            ended = [run for _, run in sorted((here | before).items())]
            if not ended:
                continue
            data = np.mean([run["behaviour"] for run in ended])
            final = np.array([run["success"][str(cell.steps)] for run in ended])
            results.append({**cell._asdict(), "runs": ended})
            rows.append([cell.label, cell.data, f"{data:.2f}", *_cells(final)])
        if rows:
            header = ["setting", "data", "success of the data", "success", "95 % interval", "of each seed"]
            texts.append(f"## {part}\n\n{_report.table(header, rows)}")
            _picture([each for each in results if each["part"] == part], out / f"qtransformer_{part}.png")
    if not results:
        raise SystemExit(f"no run in {folder} has ended yet")
    intro = (
        f"Success of the final network in {EPISODES} fresh episodes (100 of Meta-World), greedy, without a choice of "
        f"checkpoint, after {STEPS:,} updates where the label names no other number. Each seed has recordings of its "
        "own. From 5 seeds on, the interval is Student's t over seeds. Each run on one core. "
        f"{_report.describe(facts)}"
    )
    data = {"machine": facts, "steps": STEPS, "episodes": EPISODES, "cells": results}
    _report.write(
        "qtransformer", data, "\n\n".join(["# Q-Transformer on pick and relay", intro, *texts]), out
    )


def _cells(final: np.ndarray) -> list[str]:
    from scipy import stats

    each = " ".join(f"{value:.3f}" for value in final)
    if len(final) < 5:
        return [f"{final.mean():.3f}", "-", each]
    half = stats.t.ppf(0.975, len(final) - 1) * final.std(ddof=1) / np.sqrt(len(final))
    return [f"{final.mean():.3f}", f"{final.mean() - half:.3f} to {final.mean() + half:.3f}", each]


def _picture(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 0.8 + 0.32 * len(results)), layout="constrained")
    for row, each in enumerate(results):
        final = [run["success"][str(each["steps"])] for run in each["runs"]]
        axes.plot(final, [row] * len(final), "o", color="#0072b2", markersize=4, alpha=0.6)
        axes.plot([np.mean(final)] * 2, [row - 0.3, row + 0.3], color="#0072b2", linewidth=2)
        behaviour = np.mean([run["behaviour"] for run in each["runs"]])
        axes.plot([behaviour] * 2, [row - 0.3, row + 0.3], color="0.5", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(results)), [each["label"] for each in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("success (dots: seeds; dotted: the data)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
