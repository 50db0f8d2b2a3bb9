"""The score of each run, and normalised scores of settings on several games."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64

from rlcls._errors import UserError, nearest
from rlcls.evaluation.scores import SCORES

from .runs import Run, groups, note

Settings: TypeAlias = dict[str, Float64[np.ndarray, "seeds games"]]
"""The scores of each setting by its label. All settings have the same games in the same order."""

REFERENCES = ("human", "dqn")
"""Units in which random play is 0 and a reference of `rlcls.evaluation.scores.SCORES` is 1."""


def score(run: Run, last: int) -> float | None:
    """The mean return of a run's last evaluations; None if it has fewer."""
    _, returns = run.series("eval", "return_mean")
    return float(returns[-last:].mean()) if len(returns) >= last else None


def of_games(runs: Iterable[Run], last: int) -> dict[str, dict[str, list[float]]]:
    """The scores of all runs that have one, by game and then by the label of the setting."""
    runs = list(runs)
    by_game: dict[str, dict[str, list[float]]] = {}
    for game in sorted({run.game for run in runs}):
        for label, group in groups([run for run in runs if run.game == game]):
            scores = [value for run in group if (value := score(run, last)) is not None]
            if scores:
                by_game.setdefault(game, {})[label] = scores
    return by_game


def together(by_game: dict[str, dict[str, list[float]]], unit: str) -> Settings:
    """The normalised scores of all settings that have scores of every game.

    Notes on stderr name the settings that lack a game. If the number of seeds differs between games, the smallest
    number is used, and the first seeds of each game.

    Args:
      by_game: from `of_games`.
      unit: "human" or "dqn" gives (score - random) / (reference - random). The label of a setting gives score / (mean
        score of that setting), for each game.

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
            note(f"{label}: only the first {seeds} seeds of each game are used, because one game has no more")
        settings[label] = np.array([column[:seeds] for column in columns]).T
    if not settings:
        raise UserError("no setting has scores of every game")
    pairs = [_zero_and_one(game, unit, scores) for game, scores in by_game.items()]
    low, high = np.array(pairs).T
    return {label: (scores - low) / (high - low) for label, scores in settings.items()}


def _zero_and_one(game: str, unit: str, scores: dict[str, list[float]]) -> tuple[float, float]:
    """The scores of a game that are normalised to 0 and 1."""
    if unit not in REFERENCES:
        if unit not in scores:
            raise UserError(
                f"scores={unit} is neither a unit nor a setting{nearest(unit, [*REFERENCES, *scores])}"
            )
        one = float(np.mean(scores[unit]))
        if one <= 0:
            raise UserError(f"scores={unit}: its mean on {game} is {one:.4g}, but a unit must be above 0")
        return 0.0, one
    if game not in SCORES:
        raise UserError(f"scores={unit}: only Atari games have a {unit} score, and {game} is not one")
    random, human, dqn = SCORES[game]
    one = human if unit == "human" else dqn
    if one <= random:
        raise UserError(f"scores={unit}: on {game} the {unit} score is not above that of random play")
    return random, one
