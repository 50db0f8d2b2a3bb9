"""One score for each run, and the scores of settings on several games in one unit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64

from rlcls._errors import UserError, nearest
from rlcls.evaluation.scores import SCORES

from .runs import Run, groups, note

Settings: TypeAlias = dict[str, Float64[np.ndarray, "seeds games"]]
"""The scores of each setting by its label; all have the same games, in one order."""

REFERENCES = ("human", "dqn")
"""Units in which a game's random play is 0 and a reference of `rlcls.evaluation.scores.SCORES` is 1."""


def score(run: Run, last: int) -> float | None:
    """The mean return of a run's last evaluations; None if it has fewer."""
    _, returns = run.series("eval", "return_mean")
    return float(returns[-last:].mean()) if len(returns) >= last else None


def of_games(runs: Iterable[Run], last: int) -> dict[str, dict[str, list[float]]]:
    """The scores of all runs that have one: by game, then by the label of the setting."""
    runs = list(runs)
    by_game: dict[str, dict[str, list[float]]] = {}
    for game in sorted({run.game for run in runs}):
        for label, group in groups([run for run in runs if run.game == game]):
            scores = [value for run in group if (value := score(run, last)) is not None]
            if scores:
                by_game.setdefault(game, {})[label] = scores
    return by_game


def together(by_game: dict[str, dict[str, list[float]]], unit: str) -> Settings:
    """The scores of all settings that were run on every game, in a unit in which games can be compared.

    A note names each setting that lacks a game. Where a setting has more seeds on one game than on another, the first
    ones of each count.

    Args:
      by_game: from `of_games`.
      unit: "human" or "dqn", (score - random) / (reference - random); or the label of a setting, whose mean on each
        game becomes 1, and a score of 0 stays 0.

    Raises:
      UserError: a game has no such reference, no setting has that label, or its mean is not above 0.
    """
    labels = list(dict.fromkeys(label for scores in by_game.values() for label in scores))
    settings: Settings = {}
    for label in labels:
        if lacking := [game for game, scores in by_game.items() if label not in scores]:
            note(f"{label} is left out: it has no scores of {', '.join(lacking)}")
            continue
        columns = [scores[label] for scores in by_game.values()]
        seeds = min(map(len, columns))
        if seeds < max(map(len, columns)):
            note(f"{label}: the first {seeds} seeds of each game count, since one has no more")
        settings[label] = np.array([column[:seeds] for column in columns]).T
    if not settings:
        raise UserError("no setting has scores of every game")
    pairs = [_zero_and_one(game, unit, scores) for game, scores in by_game.items()]
    low, high = np.array(pairs).T
    return {label: (scores - low) / (high - low) for label, scores in settings.items()}


def _zero_and_one(game: str, unit: str, scores: dict[str, list[float]]) -> tuple[float, float]:
    """The scores of a game that become 0 and 1."""
    if unit not in REFERENCES:
        if unit not in scores:
            raise UserError(f"scores={unit} is no unit and no setting{nearest(unit, [*REFERENCES, *scores])}")
        one = float(np.mean(scores[unit]))
        if one <= 0:
            raise UserError(f"scores={unit}: its mean on {game} is {one:.4g}, and a unit must be above 0")
        return 0.0, one
    if game not in SCORES:
        raise UserError(f"scores={unit}: only Atari games have a {unit} score, and {game} is none")
    random, human, dqn = SCORES[game]
    one = human if unit == "human" else dqn
    if one <= random:
        raise UserError(f"scores={unit}: on {game} {unit} is not better than random play")
    return random, one
