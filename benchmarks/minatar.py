"""Which loss trains DQN best on MinAtar, with ten seeds of each setting, and what the choice depends on.

    taskset -c 0 python benchmarks/minatar.py rates
    python benchmarks/minatar.py losses --jobs 2 --minutes 60
    python benchmarks/minatar.py report

rates    each loss at three learning rates on Breakout, 3 seeds, 300,000 agent steps; RATES below holds the best ones
losses   five losses on four games at an equal learning rate, 1,000,000 agent steps
own      the same, each loss at its rate of `rates`
bins     HL-Gauss on Breakout: bins times widths of the histogram, 500,000 agent steps
sticky   HL-Gauss and MSE on Breakout, sticky actions 0 and 0.25, 500,000 agent steps
softmax  MSE on a softmax beside MSE and HL-Gauss on Breakout, 500,000 agent steps
width    HL-Gauss and MSE on Breakout, 1, 2 and 4 times as many units, 500,000 agent steps
noise    HL-Gauss and MSE on Breakout, uniform noise of up to 0, 0.3 and 1 on each learnt reward, 500,000 agent steps
offline  HL-Gauss and MSE on Breakout from a recording: targets of Q-learning and SARSA, with and without such noise,
         200,000 updates of CQL; the recording is of one DQN that plays 200,000 steps, a quarter of them at random

A run is one command of rlcls.train with `loop=compiled`, which trains all its seeds at once on a core of its own.
--minutes stops the runs after that time, and they save: the same command goes on. Runs that have ended, here or among
the results in --out, are not made again, and parts that need the same run share it. The score of a seed is the mean of
its last three evaluations of 30 episodes.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import _report
import _runs
import numpy as np

LOSSES = ("mse", "two_hot", "hlgauss", "c51", "quantile")
GAMES = ("Breakout", "Asterix", "SpaceInvaders", "Freeway")
RATE, CANDIDATES = 2.5e-4, (1e-4, 2.5e-4, 1e-3)
# The best rates of `rates`, by loss.
RATES: dict[str, float] = {}
LAST = 3  # evaluations in a score
NOISES = (0.0, 0.3, 1.0)
RECORDING = "offline-recording"


class Run(NamedTuple):
    """One command.

    Attributes:
      part: the part of the benchmark that makes it.
      label: names it in tables.
      game: the game of MinAtar that it learns.
      steps: agent steps of each seed; updates from a recording.
      seeds: how many.
      options: further options of rlcls.train.
    """

    part: str
    label: str
    game: str
    steps: int
    seeds: int
    options: list[str]

    @property
    def name(self) -> str:
        """Names what is trained: parts that need the same run share its folder."""
        options = "-".join(self.options).replace("=", "_").replace("[", "").replace("]", "")
        return f"{self.game}-{self.steps}-{self.seeds}-{options}"


def runs() -> list[Run]:
    """Every run, by part."""
    made = []
    for loss, rate in itertools.product(LOSSES, CANDIDATES):
        options = [f"loss={loss}", f"agent.learning_rate={rate:g}"]
        made.append(Run("rates", f"{loss} {rate:g}", "Breakout", 300_000, 3, options))
    for game, loss in itertools.product(GAMES, LOSSES):
        made.append(Run("losses", loss, game, 1_000_000, 10, [f"loss={loss}"]))
        if loss in RATES:
            own = [f"loss={loss}", *_unless_default("agent.learning_rate", RATES[loss], RATE)]
            made.append(Run("own", f"{loss} {RATES[loss]:g}", game, 1_000_000, 10, own))
    for bins, ratio in itertools.product((21, 51, 101), (0.25, 0.75, 2.0)):
        options = ["loss=hlgauss", *_unless_default("returns.num_bins", bins, 51)]
        options += _unless_default("loss.sigma_ratio", ratio, 0.75)
        made.append(Run("bins", f"{bins} bins, ratio {ratio:g}", "Breakout", 500_000, 10, options))
    for loss, sticky in itertools.product(("mse", "hlgauss"), (0.0, 0.25)):
        options = [f"loss={loss}", *_unless_default("env.sticky_actions", sticky, 0)]
        made.append(Run("sticky", f"{loss}, sticky {sticky:g}", "Breakout", 500_000, 10, options))
    for loss in ("mse", "mse_softmax", "hlgauss"):
        made.append(Run("softmax", loss, "Breakout", 500_000, 10, [f"loss={loss}"]))
    for loss, times in itertools.product(("mse", "hlgauss"), (1, 2, 4)):
        options = [f"loss={loss}", *([f"backbone.hidden=[{128 * times}]"] if times > 1 else [])]
        made.append(Run("width", f"{loss}, width {times}", "Breakout", 500_000, 10, options))
    for loss, noise in itertools.product(("mse", "hlgauss"), NOISES):
        options = [f"loss={loss}", *_unless_default("replay.reward_noise", noise, 0), *_support(noise)]
        made.append(Run("noise", f"{loss}, noise {noise:g}", "Breakout", 500_000, 10, options))
    for loss, target, noise in itertools.product(("mse", "hlgauss"), ("q_learning", "sarsa"), NOISES[::2]):
        options = ["agent=cql", f"loss={loss}", f"agent.target={target}", f"data.reward_noise={noise:g}"]
        options += ["data=recording", "checkpoint.every=50000", "logging.every=5000", *_support(noise)]
        made.append(Run("offline", f"{loss}, {target}, noise {noise:g}", "Breakout", 200_000, 10, options))
    return made


def _unless_default(option: str, value: float, default: float) -> list[str]:
    """The option with its value. It is left out where the recipe has that value, so that runs can be shared."""
    return [] if value == default else [f"{option}={value:g}"]


def _support(noise: float) -> list[str]:
    """The support for rewards that are `noise` / 2 larger in the mean, which at a discount of 0.99 is 50 * noise.

    The bins stay as wide as those of the recipe, 51 on [-1, 20].
    """
    high = 20 + 55 * noise
    return [f"returns.high={high:g}", f"returns.num_bins={round(51 * (high + 1) / 21)}"] if noise else []


PARTS = tuple(dict.fromkeys([run.part for run in runs()] + ["own"]))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "report"])
    parser.add_argument("--games", nargs="+", default=list(GAMES))
    parser.add_argument("--losses", nargs="+", help="of the part `losses`; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one core")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command goes on")
    parser.add_argument("--runs", type=Path, default=_report.ROOT / "runs" / "minatar")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    if arguments.part == "own" and not RATES:
        raise SystemExit("RATES is empty: run rates, and write down the best rate of each loss")
    path = arguments.out / "minatar.json"
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    if arguments.part != "report":
        jobs = [
            _job(run, arguments.runs)
            for run in runs()
            if run.part == arguments.part
            and run.game in arguments.games
            and (arguments.losses is None or run.label in arguments.losses)
            and _result(run, arguments.runs, known) is None
        ]
        limits: dict[str, Any] = {"processes": arguments.jobs, "minutes": arguments.minutes}
        if arguments.part != "offline" or not jobs or _record(arguments.runs, limits):
            _runs.make(jobs, arguments.runs, **limits)
    results = [result for run in runs() if (result := _result(run, arguments.runs, known)) is not None]
    if not results:
        raise SystemExit(f"no run in {arguments.runs} has ended yet")
    _write(results, arguments.out)


def _record(folder: Path, limits: dict[str, Any]) -> bool:
    """Trains one seed and records what it plays with noise; returns whether that has ended."""
    trained = Run("offline", "behaviour", "Breakout", 500_000, 1, ["loss=mse"])
    played = ["policy=run", f"run={folder / trained.name}", "epsilon=0.25", "steps=200000"]
    collect = ["-m", "rlcls.collect", *played, f"out={folder / RECORDING}"]
    jobs = _job(trained, folder), _runs.Job(RECORDING, collect)
    return all(_runs.make([job], folder, **limits) for job in jobs)


def _job(run: Run, folder: Path) -> _runs.Job:
    command = ["-m", "rlcls.train", "agent=dqn", "env=minatar", f"game={run.game}", f"seeds={run.seeds}"]
    command += [f"steps={run.steps}", f"agent.learning_rate={RATE:g}", "eval.every=50000", "eval.episodes=30"]
    if "data=recording" in run.options:
        command.append(f"data.path={folder / RECORDING}")
    # A run may replace one of the options above.
    options = {option.partition("=")[0]: option for option in [*command[2:], *run.options]}
    return _runs.Job(
        run.name,
        [*command[:2], *options.values(), "logging.tensorboard=false", f"run_dir={folder / run.name}"],
    )


def _result(run: Run, folder: Path, known: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluations of a run that has ended, from its folder or from the results; None for any other."""
    fields = json.loads(json.dumps(run._asdict()))
    for each in known:
        if all(each[name] == fields[name] for name in ("game", "steps", "seeds", "options")):
            return {**each, **fields}
    path = folder / run.name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    evaluations = [line for line in lines if line["kind"] == "eval"]
    unit = "updates" if "data=recording" in run.options else "agent_steps"
    if not evaluations or evaluations[-1][unit] < run.steps:
        return None
    machine = _report.machine()
    return {
        **fields,
        "cpu": machine["cpu"],
        "revision": machine["revision"],
        "minutes": evaluations[-1]["seconds"] / 60,
        "steps_of_evaluations": [line[unit] for line in evaluations],
        "returns": [line["return_mean_each"] for line in evaluations],
    }


def _scores(result: dict[str, Any]) -> np.ndarray:
    """[seeds]"""
    return np.asarray(result["returns"][-LAST:]).mean(axis=0)


def _write(results: list[dict[str, Any]], out: Path) -> None:
    from rlcls import statistics

    facts, texts = _report.machine(), []
    for part in PARTS:
        rows = []
        of_part = [result for result in results if result["part"] == part]
        for result in of_part:
            scores = _scores(result)[:, None]
            low, high = statistics.interval(scores, statistics.iqm)
            rows.append(
                [
                    f"{result['game']}: {result['label']}",
                    f"{result['steps']:,}",
                    str(len(scores)),
                    f"{scores.mean():.2f}",
                    f"{statistics.iqm(scores):.2f}",
                    f"{low:.2f} to {high:.2f}",
                    " ".join(f"{score:.1f}" for score in sorted(scores[:, 0])),
                    f"{result['minutes']:.0f}",
                ]
            )
        if rows:
            header = [
                "game: setting",
                "steps",
                "seeds",
                "mean",
                "IQM",
                "95 % interval of the IQM",
                "seeds",
                "minutes",
            ]
            texts.append(f"## {part}\n\n{_report.table(header, rows)}")
            _picture(of_part, out / f"minatar_{part}.png")
    intro = (
        f"Returns of greedy evaluations; the score of a seed is the mean of its last {LAST}. The interval is a "
        "bootstrap over seeds, widened for their number. Minutes are those of all seeds on one core. "
        f"{_report.describe(facts)}"
    )
    text = "\n\n".join(["# DQN on MinAtar", intro, *texts])
    _report.write("minatar", {"machine": facts, "runs": results}, text, out)


def _picture(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from rlcls import statistics

    games = list(dict.fromkeys(result["game"] for result in results))
    labels = list(dict.fromkeys(result["label"] for result in results))
    palette = plt.get_cmap("tab20" if len(labels) > 10 else "tab10").colors
    figure, panels = plt.subplots(
        1, len(games), figsize=(4.2 * len(games) + 2.2, 3.6), squeeze=False, layout="constrained"
    )
    for game, axes in zip(games, panels[0], strict=True):
        for result in (result for result in results if result["game"] == game):
            colour = palette[labels.index(result["label"])]
            steps = np.array(result["steps_of_evaluations"]) / 1e3
            curve = statistics.curve(np.asarray(result["returns"])[:, :, None], statistics.iqm)
            axes.plot(steps, curve.points, color=colour, linewidth=1.8, label=result["label"])
            axes.fill_between(steps, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(game)
        axes.set_xlabel("thousand updates" if results[0]["part"] == "offline" else "thousand agent steps")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("return (IQM and 95 % interval)")
    panels[0][-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
