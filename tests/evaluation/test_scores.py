"""Returns normalised by random, human and DQN scores."""

import math

import pytest

from rlcls.datasets.atari_games import NUM_ACTIONS
from rlcls.evaluation.scores import SCORES, behaviour_normalised, dqn_normalised, human_normalised, normalised


def test_random_play_is_0_and_the_reference_is_1_in_every_game():
    for game, (random, human, dqn) in SCORES.items():
        assert human_normalised(game, random) == 0 and human_normalised(game, human) == 1
        assert dqn_normalised(game, dqn) in (1, None)
    without = [game for game in SCORES if dqn_normalised(game, 0) is None]
    assert without == ["MontezumaRevenge", "Pitfall"]


def test_the_table_has_the_games_of_the_benchmark():
    assert len(SCORES) == 57
    assert set(SCORES) - set(NUM_ACTIONS) == {"Defender", "Surround"}  # no published recording has these
    assert all(math.isfinite(score) for scores in SCORES.values() for score in scores)


def test_a_score_is_normalised_by_the_returns_of_the_data():
    assert behaviour_normalised("Breakout", 30.5, 30.5) == 1
    assert normalised("Breakout", 1.7, behaviour=10.0) == {
        "human_normalised": 0, "dqn_normalised": 0, "behaviour_normalised": 0,
    }  # fmt: skip
    assert normalised("Pong", 14.6).keys() == {"human_normalised", "dqn_normalised"}
    assert "behaviour_normalised" not in normalised("Pong", 0.0, behaviour=-21.0)
    assert normalised("CartPole-v1", 500.0) == {}
    with pytest.raises(KeyError):
        human_normalised("CartPole-v1", 500.0)
