"""CQL on recordings of one's own: do values that are learnt by classification hold their peak?

    python benchmarks/recordings.py record
    python benchmarks/recordings.py record --all-actions
    python benchmarks/cql.py rates
    python benchmarks/cql.py main --jobs 2 --minutes 60
    python benchmarks/cql.py ablations
    python benchmarks/cql.py matched
    python benchmarks/cql.py noise
    python benchmarks/cql.py two_games
    python benchmarks/cql.py report

rates      10,000 updates of each head at three learning rates; RATES below holds the best ones
main       50,000 updates of each head at its rate, three seeds, on each game
ablations  50,000 updates of HL-Gauss on Pong without the conservative term, with SARSA targets and with other weights;
           `main` has the unchanged HL-Gauss
matched    20,000 updates of the other heads with alphas at which the gap pulls as hard as C51's (cql_gap.py, MATCHED)
noise      20,000 updates on Breakout with noisy rewards and the alphas of `matched`, which has the runs without noise
two_games  50,000 updates on both games in one network
report     draws and tabulates all results so far

Each run is a command of rlcls.train whose run folder is in --runs. It has one core. --minutes stops the runs after that
time; they save, and the same command continues them. A run that has ended is not repeated, nor is one whose complete
curve is in --out, so several machines can share the work. Options (eval.episodes=2) go to every run.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import _report
import _runs
import numpy as np
from recordings import ALL_ACTIONS, FOLDER, GAMES

from rlcls.datasets import open_recording
from rlcls.evaluation.scores import SCORES

HEADS = ("hlgauss", "c51", "quantile", "mse")
CANDIDATES = (6.25e-5, 2.5e-4, 1e-3)
# For each loss and game the rate that scored best after 10,000 updates of `rates`, or 2.5e-4 if no rate had learnt
# anything. `rates` has one seed, so differences of a few points between rates are noise.
RATES = {
    ("hlgauss", "Pong"): 1e-3,
    ("c51", "Pong"): 1e-3,
    ("quantile", "Pong"): 2.5e-4,
    ("mse", "Pong"): 2.5e-4,
    ("hlgauss", "Breakout"): 2.5e-4,
    ("c51", "Breakout"): 2.5e-4,
    ("quantile", "Breakout"): 6.25e-5,
    ("mse", "Breakout"): 2.5e-4,
}
WINDOW = 5  # evaluations in a mean
NOISE = (0.3, 1.0)
ABLATIONS = {
    "no conservative term": ("hlgauss", ["agent.alpha=0"]),
    "SARSA targets": ("hlgauss", ["agent.target=sarsa"]),
    "alpha 0.5": ("hlgauss", ["agent.alpha=0.5"]),
    "alpha 4": ("hlgauss", ["agent.alpha=4"]),
}
# The alphas at which the gap's gradient over that of td_loss is as large as with C51 and alpha 0.1, from `cql_gap.py`.
MATCHED = {
    ("hlgauss", "Pong"): 0.8,
    ("quantile", "Pong"): 11.0,
    ("mse", "Pong"): 0.33,
    ("hlgauss", "Breakout"): 0.6,
    ("quantile", "Breakout"): 7.0,
    ("mse", "Breakout"): 0.19,
}
# With alpha 0.1 HL-Gauss would learn only one of the two games.
TWO_GAMES = ["agent.games=2", "agent.alpha=0.6"]
UPDATES = {
    "rates": 10_000,
    "main": 50_000,
    "ablations": 50_000,
    "matched": 20_000,
    "noise": 20_000,
    "two_games": 50_000,
}
PARTS = tuple(UPDATES)


class Run(NamedTuple):
    """A run of the evidence; `label` names its curve."""

    part: str
    games: tuple[str, ...]
    label: str
    loss: str
    rate: float
    seed: int
    options: list[str]

    @property
    def name(self) -> str:
        words = "-".join([*self.games, self.label, f"s{self.seed}"])
        return f"{self.part}-{words.replace(', ', '-').replace(' ', '_')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="+", help="labels of the runs to make, such as 'alpha 4'; default: all"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--updates", type=int, help="updates of every run; default: those of the part")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command continues")
    parser.add_argument("--runs", type=Path, default=_report.ROOT / "runs" / "cql")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    parser.add_argument("overrides", nargs="*", help="options of every run; write them before the flags")
    arguments = parser.parse_args()
    if arguments.updates:
        UPDATES.update(dict.fromkeys(UPDATES, arguments.updates))
    folder = arguments.runs
    wanted = [run for part in PARTS for run in runs_of(part, arguments.seeds)]
    known = _known(arguments.out / "cql.json", arguments.overrides, reports=arguments.part == "report")
    if arguments.part != "report":
        jobs = [
            _job(run, folder, arguments.overrides)
            for run in wanted
            if run.part == arguments.part
            and (arguments.only is None or run.label in arguments.only)
            and not _ended(run, known)
        ]
        _runs.make(jobs, folder, processes=arguments.jobs, minutes=arguments.minutes)
    curves = [curve for run in wanted for curve in _curves(run, folder, known)]
    # Known results of other seeds are kept.
    curves += [curve for curve in known["runs"] if _identity(curve) not in map(_identity, curves)]
    if not curves:
        raise SystemExit(f"no run in {folder} or {arguments.out / 'cql.json'} has been evaluated yet")
    _write(curves, known["recordings"] | _described(), known["overrides"], arguments.out)


def runs_of(part: str, seeds: list[int]) -> list[Run]:
    """The runs of a part, ordered by seed."""
    if part == "rates":
        cells = itertools.product(CANDIDATES, HEADS, GAMES)
        return [Run(part, (game,), f"{loss} {rate:g}", loss, rate, 0, []) for rate, loss, game in cells]
    if part == "main":
        cells = itertools.product(seeds, HEADS, GAMES)
        return [Run(part, (game,), loss, loss, RATES[loss, game], seed, []) for seed, loss, game in cells]
    if part == "ablations":
        return [
            Run(part, ("Pong",), label, loss, RATES[loss, "Pong"], seed, options)
            for seed in seeds
            for label, (loss, options) in ABLATIONS.items()
        ]
    if part == "matched":
        return [
            Run(
                part,
                (game,),
                f"{loss}, alpha {alpha:g}",
                loss,
                RATES[loss, game],
                seed,
                [f"agent.alpha={alpha:g}"],
            )
            for seed in seeds
            for (loss, game), alpha in MATCHED.items()
        ]
    if part == "noise":
        return [
            Run(
                part,
                ("Breakout",),
                f"{loss}, noise {eta:g}",
                loss,
                RATES[loss, "Breakout"],
                seed,
                [f"agent.alpha={MATCHED[loss, 'Breakout']:g}", f"data.reward_noise={eta:g}"],
            )
            for seed in seeds
            for eta in NOISE
            for loss in ("hlgauss", "mse")
        ]
    return [
        Run(part, GAMES, "hlgauss, alpha 0.6", "hlgauss", RATES["hlgauss", "Pong"], seed, TWO_GAMES)
        for seed in seeds
    ]


def _job(run: Run, folder: Path, overrides: list[str]) -> _runs.Job:
    options = ["agent=cql", f"loss={run.loss}", f"game={run.games[0]}", "backbone=data_efficient"]
    options += [f"agent.learning_rate={run.rate:g}", f"seed={run.seed}", f"steps={UPDATES[run.part]}"]
    # With the protocol's epsilon, 0.001, an agent that has not learnt to serve in Breakout plays all 27,000 steps.
    options += ["eval.every=5000", "eval.epsilon=0.01", "checkpoint.every=5000"]
    options += ["data=recording", "data.reward_clip=1"]
    if len(run.games) > 1:  # games in one network need the same actions, in the data and in the emulator
        games = ",".join(run.games)
        options += [
            f"data.path={FOLDER / ALL_ACTIONS}",
            f"data.games=[{games}]",
            "+env.full_action_space=true",
        ]
    else:
        options += [f"data.path={FOLDER / run.games[0]}"]
    return _runs.Job(
        run.name, ["-m", "rlcls.train", *options, f"run_dir={folder / run.name}", *run.options, *overrides]
    )


def _described() -> dict[str, Any]:
    """The identity of each recording, and the mean return of the episodes in it."""
    described = {}
    for game in GAMES:
        if (FOLDER / game / "manifest.json").exists():
            data = open_recording(FOLDER / game)
            described[game] = {
                "rows": data.recording.columns.num_rows,
                "sha256": data.recording.identity,
                "behaviour_return": data.behaviour_returns.get(game),
            }
    return described


def _known(path: Path, overrides: list[str], *, reports: bool) -> dict[str, Any]:
    """The results that `_write` wrote earlier, perhaps on another machine."""
    if not path.exists():
        return {"overrides": overrides, "recordings": {}, "runs": []}
    known = json.loads(path.read_text())
    if known["overrides"] != overrides and (overrides or not reports):
        raise SystemExit(
            f"the runs of {path} were given {known['overrides']}: choose another --out for {overrides}"
        )
    return known


def _ended(run: Run, known: dict[str, Any]) -> bool:
    """Whether the complete curve of a run is among the known results."""
    curves = _known_curves(run, known)
    return bool(curves) and all(curve["evaluations"][-1]["updates"] == UPDATES[run.part] for curve in curves)


def _identity(curve: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(curve[name] for name in ("part", "game", "label", "seed"))


def _known_curves(run: Run, known: dict[str, Any]) -> list[dict[str, Any]]:
    fields = json.loads(json.dumps(run._asdict()))
    return [curve for curve in known["runs"] if all(curve[name] == value for name, value in fields.items())]


def _curves(run: Run, folder: Path, known: dict[str, Any]) -> list[dict[str, Any]]:
    """The evaluations of a run on each of its games, from its folder or from the known results."""
    if _ended(run, known):
        return _known_curves(run, known)
    path = folder / run.name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    facts, curves = _report.machine(), []
    for game in run.games:
        kind = f"eval.{game}" if len(run.games) > 1 else "eval"
        evaluations = [
            {name: line[name] for name in ("updates", "seconds", "return_mean", "returns")}
            for line in lines
            if line["kind"] == kind
        ]
        if evaluations:
            made_on = {name: facts[name] for name in ("cpu", "revision")}
            curves.append({**run._asdict(), "game": game, **made_on, "evaluations": evaluations})
    return curves or _known_curves(run, known)


def _summary(curves: list[dict[str, Any]], behaviour: float | None) -> dict[str, Any]:
    """Peak and end of the seeds' mean curve, up to the last evaluation that all seeds have."""
    length = min(len(curve["evaluations"]) for curve in curves)
    means = np.mean(
        [[line["return_mean"] for line in curve["evaluations"][:length]] for curve in curves], axis=0
    )
    window = min(WINDOW, length)
    smooth = np.convolve(means, np.ones(window) / window, "valid")
    peak, random = int(np.argmax(smooth)), SCORES[curves[0]["game"]][0]
    updates = [line["updates"] for line in curves[0]["evaluations"][:length]]
    held = (smooth[-1] - random) / (smooth[peak] - random) if smooth[peak] > random else None
    return {
        "part": curves[0]["part"],
        "game": curves[0]["game"],
        "label": curves[0]["label"],
        "rate": curves[0]["rate"],
        "seeds": len(curves),
        "updates": updates[-1],
        "peak": float(smooth[peak]),
        "peak_at": updates[peak + window - 1],
        "last": float(smooth[-1]),
        "held": None if held is None else float(held),
        "behaviour_return": behaviour,
    }


def _write(curves: list[dict[str, Any]], recordings: dict[str, Any], overrides: list[str], out: Path) -> None:
    facts, texts, summaries = _report.machine(), [], []
    out.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for curve in _also_without_change(curves):
            if curve["part"] == part:
                groups.setdefault((curve["game"], curve["label"]), []).append(curve)
        if not groups:
            continue
        rows = []
        for (game, _), group in sorted(groups.items(), key=lambda item: GAMES.index(item[0][0])):
            summary = _summary(group, recordings.get(game, {}).get("behaviour_return"))
            summaries.append(summary)
            rows.append(_row(summary))
        header = ["game: curve", "rate", "seeds", "updates", "peak", "at", "last", "last / peak", "behaviour"]
        texts.append(f"## {part}\n\n{_report.table(header, rows)}")
        _picture(groups, recordings, out / f"cql_{part}.png")
    hashes = [f"{game}: {each['rows']:,} rows, SHA-256 {each['sha256']}" for game, each in recordings.items()]
    intro = (
        f"Means of {WINDOW} evaluations of the mean curve of the seeds. "
        "Last / peak is (last - random) / (peak - random). "
        f"Overrides: {' '.join(overrides) or 'none'}. Each run on one core. {_report.describe(facts)}"
    )
    data = {
        "machine": facts,
        "recordings": recordings,
        "overrides": overrides,
        "summaries": summaries,
        "runs": curves,
    }
    _report.write("cql", data, "\n\n".join(["# CQL on recordings of one's own", intro, *hashes, *texts]), out)


def _also_without_change(curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves, and copies of the unchanged settings with which `ablations` and `noise` are compared."""
    bases = [("main", "Pong", "hlgauss", "ablations", "alpha 0.1")]
    bases += [("matched", "Breakout", loss, "noise", f"{loss}, noise 0") for loss in ("hlgauss", "mse")]
    return curves + [
        {**curve, "part": part, "label": label}
        for base_part, game, loss, part, label in bases
        for curve in curves
        if (curve["part"], curve["game"], curve["loss"]) == (base_part, game, loss)
    ]


def _row(summary: dict[str, Any]) -> list[str]:
    held, behaviour = summary["held"], summary["behaviour_return"]
    return [
        f"{summary['game']}: {summary['label']}",
        f"{summary['rate']:g}",
        str(summary["seeds"]),
        f"{summary['updates']:,}",
        f"{summary['peak']:.1f}",
        f"{summary['peak_at']:,}",
        f"{summary['last']:.1f}",
        "-" if held is None else f"{held:.2f}",
        "-" if behaviour is None else f"{behaviour:.1f}",
    ]


def _picture(
    groups: dict[tuple[str, str], list[dict[str, Any]]], recordings: dict[str, Any], path: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    games = [game for game in GAMES if any(game == each for each, _ in groups)]
    labels = list(dict.fromkeys(label for _, label in groups))
    palette = plt.get_cmap("tab20" if len(labels) > 10 else "tab10").colors
    # If each panel shows a head once, the head has one colour in all panels, although its labels may differ.
    shown = [(game, curves[0]["loss"]) for (game, _), curves in groups.items()]
    by_head = len(set(shown)) == len(shown)
    keys = {group: curves[0]["loss"] if by_head else group[1] for group, curves in groups.items()}
    colours = dict(zip(HEADS if by_head else labels, palette, strict=False))
    figure, panels = plt.subplots(
        1, len(games), figsize=(4.6 * len(games) + 1.6, 3.6), squeeze=False, layout="constrained"
    )
    for game, axes in zip(games, panels[0], strict=True):
        for label in labels:
            curves = groups.get((game, label), [])
            if not curves:
                continue
            colour = colours[keys[game, label]]
            series = [
                ([line["updates"] / 1e3 for line in each], [line["return_mean"] for line in each])
                for each in (curve["evaluations"] for curve in curves)
            ]
            # The mean ends at the last evaluation that all seeds have.
            length = min(len(x) for x, _ in series)
            mean = np.mean([returns[:length] for _, returns in series], axis=0)
            axes.plot(series[0][0][:length], mean, color=colour, linewidth=1.8, label=label)
            for x, returns in series if len(series) > 1 else ():
                axes.plot(x, returns, color=colour, linewidth=0.6, alpha=0.5)
        behaviour = recordings.get(game, {}).get("behaviour_return")
        if behaviour is not None:
            axes.axhline(behaviour, color="0.4", linestyle="--", linewidth=1, label="recorded episodes")
        axes.set_title(game)
        axes.set_xlabel("thousand updates")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("mean return (thin: each seed)")
    labels_of = [{label for each, label in groups if each == game} for game in games]
    for axes, own in zip(panels[0], labels_of, strict=True):
        if own != labels_of[-1]:
            axes.legend(frameon=False, fontsize=8)
    panels[0][-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
