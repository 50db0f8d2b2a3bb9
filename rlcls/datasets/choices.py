"""The functions behind `data=`. Each opens recorded experience of one format as a dataset.

They take `game`, or `games` and `weights` for a `Mixture`, and the options of `Transitions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlcls._errors import UserError

from . import dqn_replay, minari, rl_unplugged
from .atari_games import given
from .conversion import CACHE, Conversion
from .mixture import Mixture
from .recording import Recording
from .transitions import Transitions

CONVERSIONS: dict[str, Callable[..., Conversion]] = {
    "dqn_replay": dqn_replay.conversion,
    "rl_unplugged": rl_unplugged.conversion,
    "minari": minari.conversion,
}
"""The conversion of each published format to a recording."""


def open_dqn_replay(
    path: str | Path | None,
    game: str,
    *,
    games: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    runs: Sequence[int] | None = None,
    checkpoints: Sequence[int] | None = None,
    fraction: float = 1.0,
    cache: str | Path | None = None,
    **options: Any,
) -> Transitions | Mixture:
    """Opens DQN Replay files; see `dqn_replay.conversion` for the arguments and `Transitions` for the options."""

    def recording(name: str) -> Recording:
        return _cached(dqn_replay.conversion(path, name, runs, checkpoints, fraction), path, cache)

    return _open(recording, game, games, weights, options)


def open_rl_unplugged(
    path: str | Path | None,
    game: str,
    *,
    games: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    runs: Sequence[int] | None = None,
    checkpoints: Sequence[int] | None = None,
    fraction: float = 1.0,
    cache: str | Path | None = None,
    **options: Any,
) -> Transitions | Mixture:
    """Opens RL Unplugged files; see `rl_unplugged.conversion` for the arguments and `Transitions` for the options."""

    def recording(name: str) -> Recording:
        return _cached(rl_unplugged.conversion(path, name, runs, checkpoints, fraction), path, cache)

    return _open(recording, game, games, weights, options)


def open_minari(
    path: str | Path | None,
    game: str | None = None,
    *,
    fraction: float = 1.0,
    cache: str | Path | None = None,
    **options: Any,
) -> Transitions:
    """Opens a Minari dataset; see `minari.conversion` for the arguments and `Transitions` for the options."""
    return Transitions(_cached(minari.conversion(path, game, fraction), path, cache), **options)


def open_recording(
    path: str | Path | None,
    game: str | None = None,
    *,
    games: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    **options: Any,
) -> Transitions | Mixture:
    """Opens a recording; see `Transitions` for the options.

    Args:
      path: the recording's folder; with `games`, a folder with one recording for each game, named like the game.
      game: the game that the recording must have; None for any.
      games: the games of a mixture.
      weights: their shares.

    Raises:
      UserError: a recording is missing, damaged, unfinished or of another game.
    """

    def recording(name: str | None) -> Recording:
        folder = Path(given(path)) / name if games and name else Path(given(path))
        recorded = Recording(folder)
        if name is not None and recorded.manifest.layout.game != name:
            raise UserError(f"{folder} holds {recorded.manifest.layout.game}, not {name}")
        return recorded

    return _open(recording, game, games, weights, options)


def _cached(conversion: Conversion, path: Any, cache: str | Path | None) -> Recording:
    """The recording of a conversion, which is written at its first use."""
    return conversion.write(Path(cache or Path(path) / CACHE) / conversion.name)


def _open(
    recording: Callable[[Any], Recording],
    game: str | None,
    games: Sequence[str] | None,
    weights: Sequence[float] | None,
    options: dict[str, Any],
) -> Transitions | Mixture:
    if not games:
        if weights:
            raise ValueError("weights need games: data.games=[...]")
        return Transitions(recording(game), **options)
    hosts = {name: options.pop(name) for name in ("host", "hosts") if name in options}
    # Seeds are below 2**32, so each game gets its own seed and its own noise.
    seed = options.pop("seed", 0)
    opened = {
        name: Transitions(recording(name), seed=seed + (place << 32), **options, **hosts)
        for place, name in enumerate(games)
    }
    return Mixture(opened, weights, **hosts)
