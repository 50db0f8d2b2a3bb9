"""Plots of aggregates over several games: statistics with intervals, and performance profiles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlcls import statistics
from rlcls.files import write_text

from .curves import colours_of, figure_of
from .scores import Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STATISTICS = {
    "IQM": statistics.iqm,
    "median": statistics.median,
    "mean": statistics.mean,
    "optimality gap": statistics.optimality_gap,
}
_THRESHOLDS = 200  # points of a profile


def aggregates(
    settings: Settings, path: str | os.PathLike[str], *, unit: str, csv: str | os.PathLike[str] | None = None
) -> Path:
    """Draws four aggregates of each setting with 95 % intervals, and the settings' performance profiles.

    A profile is the share of all runs that score above a threshold (Agarwal et al. 2021). Intervals are those of
    `statistics.interval`, and need at least three seeds.

    Args:
      settings: scores [seeds, games], from `scores.together`.
      path: the image file, .png, .pdf or .svg.
      unit: the unit of the scores, for the label of the axes.
      csv: a file for the aggregates and their intervals.

    Raises:
      UserError: a file cannot be written.
    """
    path, labels = Path(path), list(settings)
    rows: list[tuple[str, ...]] = [("aggregate", "setting", "seeds", "games", "value", "low", "high")]
    colours, height = colours_of(labels), 1.1 + 0.34 * len(labels)
    with figure_of(path, width=8, height=height + 3.4) as figure:
        grid = figure.add_gridspec(2, len(_STATISTICS), height_ratios=[height, 3.4])
        for column, (name, statistic) in enumerate(_STATISTICS.items()):
            axes = figure.add_subplot(grid[0, column])
            axes.set_title(
                "optimality gap (lower is better)" if name == "optimality gap" else name, fontsize=9
            )
            axes.set_yticks(range(len(labels)), labels if column == 0 else [""] * len(labels))
            for place, (label, scores) in enumerate(settings.items()):
                numbers = _draw_bar(axes, place, scores, statistic, colours[label])
                rows.append((name, f'"{label}"', *map(str, scores.shape), *(f"{each:g}" for each in numbers)))
            axes.set_ylim(len(labels) - 0.4, -0.6)
            axes.tick_params(axis="x", labelsize=8)
        axes = figure.add_subplot(grid[1, :])
        _draw_profiles(axes, settings, colours)
        games = next(iter(settings.values())).shape[1]
        axes.set(
            xlabel=f"score ({unit})", ylabel=f"share of runs above it, {games} games", ylim=(-0.02, 1.02)
        )
        axes.legend(loc="upper right")
    if csv is not None:
        write_text(Path(csv), "".join(",".join(row) + "\n" for row in rows))
    return path


def _draw_bar(
    axes: Axes, place: int, scores: np.ndarray, statistic: statistics.Statistic, colour: str
) -> tuple[float, float, float]:
    """Draws a statistic and its interval in one row of a panel; returns (value, low, high)."""
    low = high = value = float(statistic(scores))
    if len(scores) >= statistics.FEWEST:
        low, high = statistics.interval(scores, statistic)
    axes.fill_betweenx([place - 0.3, place + 0.3], low, high, color=colour, alpha=0.35, linewidth=0)
    axes.plot([value, value], [place - 0.3, place + 0.3], color=colour, linewidth=2)
    return value, low, high


def _draw_profiles(axes: Axes, settings: Settings, colours: dict[str, str]) -> None:
    values = np.concatenate([scores.reshape(-1) for scores in settings.values()])
    thresholds = np.linspace(min(0.0, values.min()), values.max(), _THRESHOLDS)
    for label, scores in settings.items():
        profile = statistics.performance_profile(scores, thresholds)
        title = f"{label}, {len(scores)} seed{'s' * (len(scores) > 1)}"
        axes.plot(thresholds, profile, color=colours[label], label=title)
        if len(scores) >= statistics.FEWEST:
            above = (scores > thresholds[:, None, None]).astype(np.float64)
            _, *band = statistics.curve(above, statistics.mean)
            low, high = np.clip(band, 0, 1)
            axes.fill_between(thresholds, low, high, color=colours[label], alpha=0.18, linewidth=0)
