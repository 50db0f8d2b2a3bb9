"""The small panels of a run's picture that show what its diagnostics saw inside the network."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Title -> the series in it and what the legend calls them.
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
_ABOVE = 2  # lines of the grid that are others'


def measured(series: Callable[[str], Any]) -> list[str]:
    """The titles of the panels that there is something to draw in.

    Args:
      series: name -> agent steps and values.
    """
    return [title for title, names in _PANELS.items() if any(len(steps) for steps, _ in map(series, names))]


def draw(
    figure: "Figure", grid: Any, titles: list[str], series: Callable[[str], Any], colours: tuple[str, str]
) -> "list[Axes]":
    """Draws these panels, three in a row, below what is in the first two lines of `grid`.

    Args:
      figure: to draw into.
      grid: matplotlib's, with enough lines.
      titles: as `measured` gave them.
      series: name -> agent steps and values.
      colours: of the first and the second line of a panel.
    """
    drawn = []
    for number, title in enumerate(titles):
        axes = figure.add_subplot(grid[_ABOVE + number // COLUMNS, number % COLUMNS])
        axes.set_title(title)
        for (name, label), colour in zip(_PANELS[title].items(), colours, strict=False):
            axes.plot(*series(name), color=colour, linewidth=1.2, label=label)
        if len(_PANELS[title]) > 1:
            axes.legend(fontsize=8, borderaxespad=0, handlelength=1.2)
        if title == "norm":  # two quantities, which may lie decades apart
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        if title == "dormant units":
            from matplotlib.ticker import PercentFormatter

            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_ylim(top=1)
        drawn.append(axes)
    return drawn
