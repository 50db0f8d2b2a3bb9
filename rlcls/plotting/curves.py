"""Plots of metrics: the learning curve of one run, and comparisons of several runs."""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlcls import statistics
from rlcls._errors import UserError
from rlcls.files import replacing, write_text
from rlcls.runs.lanes import lanes

from . import panels
from .runs import Run, Series, each_game, groups, load, load_each, note, without_copies

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can distinguish. A loss has the same colour in every plot.
_COLOURS = {
    "hlgauss": "#0072B2",
    "mse": "#D55E00",
    "two_hot": "#009E73",
    "c51": "#CC79A7",
    "huber": "#E69F00",
    "": "#56B4E9",
    " ": "#000000",
}
_GREY = "#8A8A8A"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
}
_PANELS = {"loss": "loss", "td_divergence": "TD divergence", "clip_fraction": "targets clipped"}


def learning_curve(run_dir: str | os.PathLike[str], *, axis: str = "agent_steps", smooth: int = 1) -> Path:
    """Draws a run's returns, loss, TD divergence, clip fraction and diagnostics into its learning_curve.png.

    Args:
      run_dir: the folder.
      axis: the unit of the horizontal axis, one of `AXES`.
      smooth: number of points in a moving average, at least 1.

    Raises:
      UserError: the folder is not a run folder, or cannot be written to.
    """
    run = load(run_dir, axis, smooth)
    path = run.folder / "learning_curve.png"
    diagnostics = functools.partial(run.smoothed, "diagnostics")
    titles = panels.measured(diagnostics)
    lines = -(-len(titles) // panels.COLUMNS)
    with figure_of(path, width=8, height=6 + 1.8 * lines) as figure:
        grid = figure.add_gridspec(2 + lines, 3, height_ratios=[2.6, *[1] * (1 + lines)])
        axes = figure.add_subplot(grid[0, :])
        protocol = run.config.env.get("protocol")
        several = len(lanes(run.config))
        details = [
            f"means of {several}" if several > 1 else f"seed {run.config.seed}",
            f"{protocol} protocol" if protocol else "",
        ]
        figure.suptitle(f"{run.game}: {run.agent}, {run.loss}", x=0.012, ha="left", weight="bold")
        figure.text(0.988, 0.985, ", ".join(filter(None, details)), ha="right", va="top", color="#404040")
        colour = _COLOURS.get(run.loss, _COLOURS["hlgauss"])
        _draw_returns(axes, run, colour)
        _step_axis(axes, run.last)
        _add_minutes(axes, run)
        for column, (name, title) in enumerate(_PANELS.items()):
            panel = figure.add_subplot(grid[1, column])
            panel.set_title(title)
            panels.line(panel, run.smoothed("train", name), color=colour, linewidth=1.2)
            panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
            _step_axis(panel, run.last)
            if name == "clip_fraction":
                panel.yaxis.set_major_formatter(panels.percent())
                panel.set_ylim(top=max(0.01, panel.get_ylim()[1]))
        for panel in panels.draw(figure, grid, titles, diagnostics, (colour, _GREY)):
            _step_axis(panel, run.last)
    return path


def compare(
    run_dirs: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    axis: str = "agent_steps",
    smooth: int = 1,
    csv: str | os.PathLike[str] | None = None,
) -> Path:
    """Draws the evaluation returns of several runs, one panel for each game.

    Runs that differ only in their seed are drawn as one line, their mean, with the 95 % interval of the mean. With
    fewer than three seeds, the band reaches from the lowest to the highest return instead. Where only some seeds have
    data, the line is dashed and labelled with their number. If no run of a panel has evaluations, it shows training
    returns. Notes on stderr name the runs that are not drawn: copies of a run, and runs without returns of the panel's
    kind.

    Args:
      run_dirs: the folders.
      path: the image file, .png, .pdf or .svg.
      axis: the unit of the horizontal axis, one of `AXES`.
      smooth: number of points in a moving average, at least 1.
      csv: a file for the numbers of the lines and bands.

    Raises:
      UserError: a folder is not a run folder, a folder is named twice, or a file cannot be written.
    """
    if len({Path(run_dir).resolve() for run_dir in run_dirs}) < len(run_dirs):
        raise UserError("a run folder is named twice")
    runs = without_copies(run for run_dir in run_dirs for run in load_each(run_dir, axis, smooth))
    games = sorted({run.game for run in runs})
    columns = min(len(games), 3)
    lines = -(-len(games) // columns)
    path, rows = Path(path), [",".join(("game", "setting", "seeds", "position", "mean", "low", "high"))]
    with figure_of(path, width=max(6.4, 4.2 * columns), height=4.2 * lines) as figure:
        for index, game in enumerate(games):
            axes = figure.add_subplot(lines, columns, index + 1)
            axes.set_title(game, weight="bold")
            of_game = [run for run in runs if run.game == game]
            evaluated = any(len(run.series("eval", "return_mean")[0]) for run in of_game)
            kind, name = ("eval", "return_mean") if evaluated else ("train", "episode_return")
            what = "evaluation return" if evaluated else "training return, mean of 20 episodes"
            colours = dict(_COLOURS)
            for label, group in groups(of_game):
                seeds = [run for run in group if len(run.series(kind, name)[0])]
                for run in group:
                    if run not in seeds:
                        note(f"{run.folder} is not drawn: it has no {what.partition(',')[0]} yet")
                if seeds:
                    lines_of_seeds = [run.smoothed(kind, name) for run in seeds]
                    numbers = _draw_group(axes, label, lines_of_seeds, _take(colours, group[0].loss))
                    rows += [
                        ",".join((game, f'"{label}"', *(f"{each:g}" for each in row))) for row in numbers
                    ]
            _step_axis(axes, max(run.last for run in of_game))
            axes.set_xlabel(" or ".join(dict.fromkeys(run.unit for run in of_game)))
            axes.set_ylabel(what + (f"; mean of {smooth} points" if smooth > 1 else ""))
            if axes.get_lines():
                # The legend is below the panel, because lines can fill all of it.
                axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), borderaxespad=0)
    if csv is not None:
        write_text(Path(csv), "\n".join(rows) + "\n")
    return path


def _draw_returns(axes: "Axes", run: Run, colour: str) -> None:
    axes.plot(*run.series("episode", "return"), ".", color="#C4C4C4", markersize=3, label="training episode")
    panels.line(
        axes,
        run.smoothed("train", "episode_return"),
        color=_GREY,
        linewidth=1.2,
        label="training, mean of 20 episodes",
    )
    played = each_game(run)
    for one, each_colour in zip(
        played, itertools.cycle(dict.fromkeys([colour, *_COLOURS.values()])), strict=False
    ):
        steps, mean = one.smoothed("eval", "return_mean")
        deviations = dict(zip(*one.smoothed("eval", "return_std"), strict=True))
        # A custom evaluator may have no return_std.
        spread = np.array([deviations.get(step, 0.0) for step in steps])
        axes.fill_between(steps, mean - spread, mean + spread, color=each_colour, alpha=0.18, linewidth=0)
        label = "evaluation" if len(played) == 1 else one.game
        label += ", mean and standard deviation"
        axes.plot(steps, mean, "o-", color=each_colour, markersize=4, label=label)
    axes.set(xlabel=run.unit, ylabel="return" + (f", mean of {run.smooth} points" if run.smooth > 1 else ""))
    # The legend leaves out lines without points.
    drawn = [line for line in axes.get_lines() if len(line.get_xdata())]  # type: ignore[arg-type]
    if drawn:
        axes.legend(handles=drawn, loc="best")


def _draw_group(axes: "Axes", label: str, seeds: list[Series], colour: str) -> list[tuple[float, ...]]:
    """Draws the mean of all seeds where all have data, and beyond that, dashed, the means of the seeds that do.

    Returns:
      (seeds, position, mean, low, high) of each point.
    """
    numbers: list[tuple[float, ...]] = []
    points = np.unique(np.concatenate([steps for steps, _ in seeds]))
    points = points[points >= max(steps[0] for steps, _ in seeds)]
    ends = sorted({float(steps[-1]) for steps, _ in seeds})
    label += f", {len(seeds)} seeds" if len(seeds) > 1 else ""
    begin, name = 0.0, label
    for end in ends:
        left = [seed for seed in seeds if seed[0][-1] >= end]
        grid = points[(points >= begin) & (points <= end)]
        begin = end
        if not len(grid):
            continue
        curves = np.array([np.interp(grid, *seed) for seed in left])
        mean = curves.mean(axis=0)
        whole = len(left) == len(seeds)
        style: dict[str, Any] = {} if whole else {"linestyle": (0, (3, 2)), "linewidth": 1.2}
        marker = "o" if whole and len(points) <= 60 else ""
        axes.plot(grid, mean, marker=marker, color=colour, markersize=4, label=name, **style)
        name = "_nolegend_"
        low, high = _band(curves)
        numbers += [(len(left), *row) for row in zip(grid, mean, low, high, strict=True)]
        if len(left) > 1:
            axes.fill_between(grid, low, high, color=colour, alpha=0.18 if whole else 0.09, linewidth=0)
        if not whole:
            middle = len(grid) // 2
            axes.annotate(
                f"n={len(left)}",
                (grid[middle], mean[middle]),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                color=colour,
                fontsize=8,
            )
    return numbers


def _band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of the mean of curves [seeds, times]; with fewer than three seeds, minimum and maximum."""
    if len(curves) < statistics.FEWEST:
        return curves.min(axis=0), curves.max(axis=0)
    _, low, high = statistics.curve(curves.T[:, :, None], statistics.mean)
    return low, high


def colours_of(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label of `groups`, which begins with a loss."""
    colours = dict(_COLOURS)
    return {label: _take(colours, label.partition(",")[0]) for label in labels}


def _take(colours: dict[str, str], loss: str) -> str:
    """The colour of the loss, or the next unused colour."""
    for name in (loss, "", " ", *_COLOURS):
        if name in colours:
            return colours.pop(name)
    return _GREY


def _step_axis(axes: "Axes", last: float) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlim(0, 1.015 * max(last, 1))  # room for the last marker
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6 if axes.bbox.width > 400 else 4, steps=[1, 2, 5, 10]))
    axes.margins(y=0.08)


def _add_minutes(axes: "Axes", run: Run) -> None:
    """Adds a second axis on top: the wall-clock time at which a step was reached."""
    from matplotlib.ticker import MaxNLocator

    clock = {0.0: 0} | {row["seconds"] / 60: row[run.axis] for row in run.rows}
    if len(clock) < 2:
        return
    minutes, steps = np.array(sorted(clock.items())).T
    unit, name = (60, "hours") if minutes[-1] > 300 else (1, "minutes")
    ticks = np.asarray(MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(0, minutes[-1] / unit))
    ticks = ticks[(ticks * unit >= minutes[0]) & (ticks * unit <= minutes[-1])]
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    top.set_xticks(np.interp(ticks * unit, minutes, steps), [f"{tick:g}" for tick in ticks])
    top.tick_params(length=3, labelsize=9)
    top.spines["top"].set_visible(True)
    top.grid(False)
    top.set_xlabel(f"wall-clock {name}", fontsize=9)


@contextmanager
def figure_of(path: Path, *, width: float, height: float) -> Iterator["Figure"]:
    """A figure in the project's style, which is saved to `path` at the end of the block."""
    import matplotlib
    from matplotlib.figure import Figure

    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"cannot draw into {path.name}; the name must end in .png, .pdf or .svg")
    # A bare Figure draws with Agg and needs no display.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as partial:
            figure.savefig(partial, format=path.suffix[1:])
