"""The Atari games of the published data, and how many actions each has."""

from __future__ import annotations

from pathlib import Path

from rlcls._errors import UserError, nearest

# The files do not say it, and a part of them need not hold every action. These are the emulator's minimal action sets.
_MINIMAL = {
    3: "Freeway Skiing",
    4: "Atlantis Breakout",
    6: "AirRaid Bowling Carnival DemonAttack NameThisGame Pong Pooyan Qbert SpaceInvaders UpNDown",
    7: "Assault",
    8: "Gopher Phoenix Tutankham",
    9: "Asterix BeamRider CrazyClimber Enduro MsPacman VideoPinball",
    10: "Amidar TimePilot WizardOfWor",
    14: "Asteroids KungFuMaster",
    16: "JourneyEscape",
    18: "Alien BankHeist BattleZone Berzerk Boxing Centipede ChopperCommand DoubleDunk ElevatorAction FishingDerby "
    "Frostbite Gravitar Hero IceHockey Jamesbond Kangaroo Krull MontezumaRevenge Pitfall PrivateEye Riverraid "
    "RoadRunner Robotank Seaquest Solaris StarGunner Tennis Venture YarsRevenge Zaxxon",
}
NUM_ACTIONS = {game: count for count, games in _MINIMAL.items() for game in games.split()}
"""Actions of each game by its name in CamelCase."""


def game_folder(path: str | Path | None, game: str) -> Path:
    """The folder of a game below `path`.

    Raises:
      UserError: `path` is not said or not there, or holds other games.
    """
    if game not in NUM_ACTIONS:
        raise UserError(f"unknown game {game!r}{nearest(game, NUM_ACTIONS, most=4)}")
    folder = Path(given(path)) / game
    if not folder.is_dir():
        games = [entry.name for entry in Path(given(path)).iterdir() if entry.name in NUM_ACTIONS]
        raise UserError(f"{path} has no folder {game}; it holds {', '.join(sorted(games)) or 'no game'}")
    return folder


def given(path: str | Path | None) -> str | Path:
    """The folder of the data.

    Raises:
      UserError: it is not said or not there.
    """
    if not path:
        raise UserError("say where the data are: data.path=FOLDER")
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder")
    return path
