"""Says which runs differ, by how much and how surely: `python -m rlcls.compare runs/*`."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np

from rlcls._errors import UserError, command
from rlcls.cli.arguments import folders, parse, whole_number

_OPTIONS = ("last", "scores")
_NAMES = {"mean": "mean", "iqm": "IQM"}
_MOST = 1000  # seeds that are worth naming
_HELP = """Compares the evaluation returns of runs.

usage: python -m rlcls.compare RUN_FOLDER [RUN_FOLDER ...] [name=value ...]

Runs that differ only in their seed are one setting. For each game a table has the mean return of each setting, with a
95 % interval from three seeds on, and another the differences of each two: the difference of means, its interval, the
probability that a run of the first is better than one of the second, and how many seeds each would show a difference of
this size if the interval still contains 0.

scores=UNIT       also compare all games together, by the interquartile mean of scores in a unit that games share:
                  human or dqn, in which random play is 0 and that reference 1 (Atari); or a setting, as the tables
                  name it, whose mean is 1
last=N            the score of a run is the mean of its last N evaluations; default: 1"""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 2 for a mistake of the user's."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = parse(argv, _OPTIONS, names=True)
    if arguments.help:
        print(_HELP)
        return 0
    if not arguments.names:
        raise UserError("name the run folders to compare, such as runs/*; --help says more")
    last = whole_number(arguments.options, "last", 1, 10**6) or 1

    from rlcls.plotting import load_each, of_games, together, without_copies

    runs = without_copies(run for name in folders(arguments.names) for run in load_each(name))
    by_game = of_games(runs, last)
    for game in sorted({run.game for run in runs} - by_game.keys()):
        print(f"note: no run of {game} has {last} evaluations yet", file=sys.stderr)
    if not by_game:
        raise UserError("no run has been evaluated yet")
    tables = []
    for game, settings in by_game.items():
        tables += _tables(
            game, {label: np.array(scores)[:, None] for label, scores in settings.items()}, "mean"
        )
    if unit := arguments.options.get("scores"):
        tables += _tables(f"{len(by_game)} games, {unit} = 1", together(by_game, unit), "iqm")
    print("\n\n".join(tables))
    return 0


def _tables(title: str, settings: dict[str, np.ndarray], statistic: str) -> list[str]:
    """The table of the settings, and that of their differences if there are several."""
    tables = [f"{title}\n{_aggregates(settings, statistic)}"]
    return [*tables, _differences(settings, statistic)] if len(settings) > 1 else tables


def _aggregates(settings: dict[str, np.ndarray], statistic: str) -> str:
    from rlcls import statistics

    function = getattr(statistics, statistic)
    rows = [["setting", "seeds", _NAMES[statistic], "95 % interval", "worst", "best"]]
    for label, scores in settings.items():
        between = "-"
        if len(scores) >= statistics.FEWEST:
            between = _between(statistics.interval(scores, function))
        extremes = [f"{scores.min():.4g}", f"{scores.max():.4g}"]
        rows.append([label, f"{len(scores)}", f"{float(function(scores)):.4g}", between, *extremes])
    return _table(rows)


def _differences(settings: dict[str, np.ndarray], statistic: str) -> str:
    from rlcls import statistics

    function = getattr(statistics, statistic)
    rows = [
        [
            "difference",
            f"of {_NAMES[statistic]}s",
            "95 % interval",
            "better with probability",
            "seeds to show it",
        ]
    ]
    for (first, ours), (second, theirs) in itertools.combinations(settings.items(), 2):
        better = f"{statistics.probability_of_improvement(ours, theirs):.2f}"
        row = [f"{first} - {second}", f"{float(function(ours) - function(theirs)):.4g}"]
        if min(len(ours), len(theirs)) < statistics.FEWEST:
            rows.append([*row, "-", better, f"at least {statistics.FEWEST}"])
            continue
        point, (low, high) = statistics.difference(ours, theirs, function)
        enough = _seeds_to_show(point, low, high, min(len(ours), len(theirs)))
        rows.append([*row, _between((low, high)), better, enough])
    return _table(rows)


def _seeds_to_show(point: float, low: float, high: float, seeds: int) -> str:
    """Seeds of each setting with which an interval around this difference would leave out 0."""
    if low > 0 or high < 0 or low == high:
        return "these"
    half = (high - low) / 2
    if abs(point) * math.sqrt(_MOST / seeds) < half:
        return f"more than {_MOST:,}"
    return f"about {math.ceil(seeds * (half / abs(point)) ** 2)}"


def _between(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4g} to {interval[1]:.4g}"


def _table(rows: list[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
