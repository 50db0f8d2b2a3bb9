"""Reads run folders for plots and tables, and groups runs that are seeds of the same setting."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from omegaconf import DictConfig, OmegaConf

from rlcls._errors import UserError
from rlcls.runs import metrics
from rlcls.runs.folder import read_config, read_facts
from rlcls.runs.identity import difference, identity
from rlcls.runs.lanes import lanes

AXES = ("agent_steps", "frames")
"""Units of the horizontal axis. A run that plays nothing uses its updates instead of agent steps."""

_OF_GAME = "eval."  # prefix of the `kind` of evaluations in one of several games

Series = tuple[Float64[np.ndarray, "_"], Float64[np.ndarray, "_"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The contents of a run folder that plots show.

    Attributes:
      folder: the run folder.
      config: the configuration.
      game: the name of the environment.
      rows: the lines of the metrics.
      axis: the unit of positions, one of `AXES` or "updates".
      smooth: the number of points in the moving average of `smoothed`.
    """

    folder: Path
    config: DictConfig
    game: str
    rows: list[dict[str, Any]]
    axis: str
    smooth: int

    @property
    def agent(self) -> str:
        """The class name of the agent."""
        return str(self.config.agent._target_).rpartition(".")[2]

    @property
    def loss(self) -> str:
        """The name of the loss."""
        return str(self.config.choices.loss)

    def series(self, kind: str, name: str) -> Series:
        """Positions and values of one metric, where it was measured and finite."""
        rows = [row for row in self.rows if row["kind"] == kind and row.get(name) is not None]
        steps = np.array([row[self.axis] for row in rows], np.float64)
        return steps, np.array([row[name] for row in rows], np.float64)

    def smoothed(self, kind: str, name: str) -> Series:
        """`series` with a moving average: each value is the mean of the last `smooth` values."""
        steps, values = self.series(kind, name)
        sums = np.cumsum(np.concatenate([[0.0], values]))
        first = np.maximum(np.arange(len(values)) + 1 - self.smooth, 0)
        last = np.arange(len(values)) + 1
        return steps, (sums[last] - sums[first]) / (last - first) if self.smooth > 1 else values

    @property
    def last(self) -> int:
        """The position of the newest line."""
        return max((row[self.axis] for row in self.rows), default=0)

    @property
    def unit(self) -> str:
        """The unit of positions, in words."""
        return self.axis.replace("_", " ")


def load(run_dir: str | os.PathLike[str], axis: str = "agent_steps", smooth: int = 1) -> Run:
    """Reads a run folder. If it trained several seeds or settings together, the numbers are means over them.

    Args:
      run_dir: the folder.
      axis: the unit of positions, one of `AXES`.
      smooth: number of points in the moving average of `Run.smoothed`, at least 1.

    Raises:
      UserError: it is not a run folder, or its metrics do not have this `axis`.
    """
    folder = Path(run_dir)
    config = read_config(folder)
    game = read_facts(folder).get("environment") or str(config.get("game", config.choices.env))
    rows = metrics.read(folder)
    if rows and axis not in rows[0]:
        if axis != "agent_steps":
            raise UserError(f"axis={axis}: {folder} counts updates only")
        axis = "updates"
    return Run(folder, config, game, rows, axis, smooth)


def load_each(run_dir: str | os.PathLike[str], axis: str = "agent_steps", smooth: int = 1) -> list[Run]:
    """Like `load`, but one run for each seed, setting and game that the folder trained together."""
    whole = load(run_dir, axis, smooth)
    configs = lanes(whole.config)
    if len(configs) == 1:
        return each_game(whole)
    return [
        dataclasses.replace(whole, config=each, rows=_of_lane(whole.rows, lane))
        for lane, each in enumerate(configs)
    ]


def each_game(run: Run) -> list[Run]:
    """One run for each game that a network of several games plays, with its evaluations as "eval"; else [run]."""
    games = dict.fromkeys(
        row["kind"].removeprefix(_OF_GAME) for row in run.rows if row["kind"].startswith(_OF_GAME)
    )
    return [dataclasses.replace(run, game=game, rows=_of_game(run.rows, game)) for game in games] or [run]


def _of_game(rows: list[dict[str, Any]], game: str) -> list[dict[str, Any]]:
    """The metrics of a run of several games, with the evaluations of one game as "eval"."""
    return [row | {"kind": "eval"} if row["kind"] == _OF_GAME + game else row for row in rows]


def _of_lane(rows: list[dict[str, Any]], lane: int) -> list[dict[str, Any]]:
    """The metrics of one lane of a run, with its values under the usual names."""
    each = "_each"
    return [
        row | {name.removesuffix(each): value[lane] for name, value in row.items() if name.endswith(each)}
        for row in rows
    ]


def without_copies(runs: Iterable[Run]) -> list[Run]:
    """The runs without copies. Of several runs with equal configuration and seed, the longest one is kept."""
    by_identity: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        options: Any = OmegaConf.to_container(run.config)
        by_identity.setdefault((identity(options), run.game), []).append(run)
    kept = []
    for copies in by_identity.values():
        longest = max(copies, key=lambda run: run.last)
        kept.append(longest)
        for run in copies:
            if run is not longest:
                note(
                    f"{run.folder} is not drawn: it is the same run as {longest.folder}, seed {run.config.seed}"
                )
    return kept


def groups(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """The runs by label. Runs with the same label differ only in their seed."""
    variants: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: (run.loss, str(run.folder))):
        for variant in variants:
            if not _changed(variant[0], run):
                variant.append(run)
                break
        else:
            variants.append([run])
    groups = []
    for variant in variants:
        first = variant[0]
        others = [other[0] for other in variants if other is not variant and other[0].loss == first.loss]
        options = set().union(*(_changed(other, first) for other in others))
        named = [
            f"{option.rpartition('.')[2]}={OmegaConf.select(first.config, option)}"
            for option in sorted(options)
        ]
        # More than three options would fill the plot, so the label is the folder's name.
        named = named if len(named) <= 3 else [first.folder.name]
        groups.append((", ".join([first.loss, *named]), variant))
    return groups


def note(text: str) -> None:
    """Prints a note on stderr."""
    print(f"note: {text}", file=sys.stderr)


def _changed(run: Run, other: Run) -> set[str]:
    """The options in which two runs differ, without the seed."""
    lines = difference(_setting(run.config), _setting(other.config))
    return {line.split()[0] for line in lines} - {"seed"}


def _setting(config: DictConfig) -> dict[str, Any]:
    """The options of a run. `data.seed` is counted from the run's seed, which it follows unless it is given."""
    options: Any = OmegaConf.to_container(config)
    if "seed" in (options.get("data") or {}):
        options["data"]["seed"] -= options["seed"]
    return options
