"""The Atari games of the published data, and their numbers of actions."""

from __future__ import annotations

from pathlib import Path

from rlcls._errors import UserError, nearest

# The sizes of the emulator's minimal action sets. The files do not state them, and need not contain every action.
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
"""The number of actions of each game; the keys are names in CamelCase."""


def game_folder(path: str | Path | None, game: str) -> Path:
    """The folder of a game below `path`.

    Raises:
      UserError: `path` is missing, or has no folder of this game.
    """
    if game not in NUM_ACTIONS:
        raise UserError(f"unknown game {game!r}{nearest(game, NUM_ACTIONS, most=4)}")
    folder = Path(given(path)) / game
    if not folder.is_dir():
        games = [entry.name for entry in Path(given(path)).iterdir() if entry.name in NUM_ACTIONS]
        raise UserError(f"{path} has no folder {game}; it has {', '.join(sorted(games)) or 'no game'}")
    return folder


def given(path: str | Path | None) -> str | Path:
    """The path, checked to be a folder.

    Raises:
      UserError: `path` is None or is not a folder.
    """
    if not path:
        raise UserError("give the folder of the data: data.path=FOLDER")
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder")
    return path
