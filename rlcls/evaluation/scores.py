"""Published scores of random play, a human and DQN on 57 Atari games, and normalised returns."""

from __future__ import annotations

# Returns (random actions, a professional tester, DQN) with up to 30 no-op actions at the start and at most 30 minutes
# per game. Source: Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", table of no-op
# starts. Papers on offline Atari normalise by other DQN agents, which recorded the data with sticky actions.
SCORES = {
    "Alien": (227.8, 7127.7, 1620.0),
    "Amidar": (5.8, 1719.5, 978.0),
    "Assault": (222.4, 742.0, 4280.4),
    "Asterix": (210.0, 8503.3, 4359.0),
    "Asteroids": (719.1, 47388.7, 1364.5),
    "Atlantis": (12850.0, 29028.1, 279987.0),
    "BankHeist": (14.2, 753.1, 455.0),
    "BattleZone": (2360.0, 37187.5, 29900.0),
    "BeamRider": (363.9, 16926.5, 8627.5),
    "Berzerk": (123.7, 2630.4, 585.6),
    "Bowling": (23.1, 160.7, 50.4),
    "Boxing": (0.1, 12.1, 88.0),
    "Breakout": (1.7, 30.5, 385.5),
    "Centipede": (2090.9, 12017.0, 4657.7),
    "ChopperCommand": (811.0, 7387.8, 6126.0),
    "CrazyClimber": (10780.5, 35829.4, 110763.0),
    "Defender": (2874.5, 18688.9, 23633.0),
    "DemonAttack": (152.1, 1971.0, 12149.4),
    "DoubleDunk": (-18.6, -16.4, -6.6),
    "Enduro": (0.0, 860.5, 729.0),
    "FishingDerby": (-91.7, -38.7, -4.9),
    "Freeway": (0.0, 29.6, 30.8),
    "Frostbite": (65.2, 4334.7, 797.4),
    "Gopher": (257.6, 2412.5, 8777.4),
    "Gravitar": (173.0, 3351.4, 473.0),
    "Hero": (1027.0, 30826.4, 20437.8),
    "IceHockey": (-11.2, 0.9, -1.9),
    "Jamesbond": (29.0, 302.8, 768.5),
    "Kangaroo": (52.0, 3035.0, 7259.0),
    "Krull": (1598.0, 2665.5, 8422.3),
    "KungFuMaster": (258.5, 22736.3, 26059.0),
    "MontezumaRevenge": (0.0, 4753.3, 0.0),
    "MsPacman": (307.3, 6951.6, 3085.6),
    "NameThisGame": (2292.3, 8049.0, 8207.8),
    "Phoenix": (761.4, 7242.6, 8485.2),
    "Pitfall": (-229.4, 6463.7, -286.1),
    "Pong": (-20.7, 14.6, 19.5),
    "PrivateEye": (24.9, 69571.3, 146.7),
    "Qbert": (163.9, 13455.0, 13117.3),
    "Riverraid": (1338.5, 17118.0, 7377.6),
    "RoadRunner": (11.5, 7845.0, 39544.0),
    "Robotank": (2.2, 11.9, 63.9),
    "Seaquest": (68.4, 42054.7, 5860.6),
    "Skiing": (-17098.1, -4336.9, -13062.3),
    "Solaris": (1236.3, 12326.7, 3482.8),
    "SpaceInvaders": (148.0, 1668.7, 1692.3),
    "StarGunner": (664.0, 10250.0, 54282.0),
    "Surround": (-10.0, 6.5, -5.6),
    "Tennis": (-23.8, -8.3, 12.2),
    "TimePilot": (3568.0, 5229.2, 4870.0),
    "Tutankham": (11.4, 167.6, 68.1),
    "UpNDown": (533.4, 11693.2, 9989.9),
    "Venture": (0.0, 1187.5, 163.0),
    "VideoPinball": (16256.9, 17667.9, 196760.4),
    "WizardOfWor": (563.5, 4756.5, 2704.0),
    "YarsRevenge": (3092.9, 54576.9, 18098.9),
    "Zaxxon": (32.5, 9173.3, 5363.0),
}
"""The returns (random, human, DQN) of each game; the keys are names in CamelCase."""


def human_normalised(game: str, score: float) -> float:
    """(score - random) / (human - random); a KeyError for a game that is not in `SCORES`.

    >>> human_normalised("Pong", 14.6)
    1.0
    """
    random, human, _ = SCORES[game]
    return (score - random) / (human - random)


def dqn_normalised(game: str, score: float) -> float | None:
    """(score - random) / (DQN - random); None if DQN is not better than random play (Montezuma's Revenge, Pitfall).

    A KeyError for a game that is not in `SCORES`.
    """
    random, _, dqn = SCORES[game]
    return (score - random) / (dqn - random) if dqn > random else None


def behaviour_normalised(game: str, score: float, behaviour: float) -> float | None:
    """(score - random) / (behaviour - random); None if the data's mean return is not above that of random play.

    A KeyError for a game that is not in `SCORES`.
    """
    random, _, _ = SCORES[game]
    return (score - random) / (behaviour - random) if behaviour > random else None


def normalised(game: str, score: float, behaviour: float | None = None) -> dict[str, float]:
    """The normalised scores that exist for this game, by the names of their functions; empty for an unknown game.

    Args:
      game: its name in CamelCase.
      score: the mean return of raw rewards.
      behaviour: the mean return of the training episodes in the dataset, or None.
    """
    if game not in SCORES:
        return {}
    values = {
        "human_normalised": human_normalised(game, score),
        "dqn_normalised": dqn_normalised(game, score),
        "behaviour_normalised": None if behaviour is None else behaviour_normalised(game, score, behaviour),
    }
    return {name: value for name, value in values.items() if value is not None}
