"""The small panels of a learning curve that show diagnostics."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

# Title of a panel -> {name of a metric: label in the legend}.
_PANELS = {
    "effective rank": {"rankme": "RankMe", "srank": "srank"},
    "dormant units": {"dormant_ratio": ""},
    "absolute TD error": {"held_out_td_error": "held out", "td_error": "the update's"},
    "norm": {"feature_norm": "features", "gradient_norm": "gradient"},
    "spectrum decay": {"alpha_req": ""},
    "attention entropy": {"attention_entropy": "mean", "attention_entropy_least": "least head"},
    "slot similarity": {"dispatch_similarity_mean": "dispatch", "combine_similarity_mean": "combine"},
}
COLUMNS = 3
_ABOVE = 2  # rows of the grid above these panels


def measured(series: Callable[[str], Any]) -> list[str]:
    """The titles of the panels that have data.

    Args:
      series: name -> steps and values.
    """
    return [title for title, names in _PANELS.items() if any(len(steps) for steps, _ in map(series, names))]


def line(axes: "Axes", series: tuple[Any, Any], **style: Any) -> None:
    """Plots steps and values as a line, or as a marker if there is only one point."""
    axes.plot(*series, marker="o" if len(series[0]) == 1 else "", markersize=4, **style)


def percent() -> "Formatter":
    """A formatter that shows 0.5 as 50%."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0)


def draw(
    figure: "Figure", grid: Any, titles: list[str], series: Callable[[str], Any], colours: tuple[str, str]
) -> "list[Axes]":
    """Draws panels, three in a row, below the first two rows of `grid`.

    Args:
      figure: the figure to draw into.
      grid: matplotlib's grid, with enough rows.
      titles: from `measured`.
      series: name -> steps and values.
      colours: for the first and the second series of a panel.

    Returns:
      The panels' axes.
    """
    drawn = []
    for number, title in enumerate(titles):
        axes = figure.add_subplot(grid[_ABOVE + number // COLUMNS, number % COLUMNS])
        axes.set_title(title)
        for (name, label), colour in zip(_PANELS[title].items(), colours, strict=False):
            line(axes, series(name), color=colour, linewidth=1.2, label=label)
        if len(_PANELS[title]) > 1:
            axes.legend(fontsize=8, borderaxespad=0, handlelength=1.2)
        if title == "norm":  # the two series can differ by orders of magnitude
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        if title == "dormant units":
            axes.yaxis.set_major_formatter(percent())
            axes.set_ylim(top=1)
        drawn.append(axes)
    return drawn
